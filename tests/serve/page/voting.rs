//! Pairs and votes through the server.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{RUNS, Server, get, serve};

/// Images of two seeds, without and with the adapter of the run.
fn images(server: &Server) {
    server.ask("POST", "/kiln/v1/runs/quickstart/checkpoints/4/serve", &[], &[]).expect(201);
    for seed in [0, 1] {
        for loras in [json!([]), json!([{"name": "quickstart-step-4"}])] {
            let request = json!({"prompt": "red apple", "seed": seed, "steps": 2, "loras": loras});
            server.ask("POST", "/kiln/v1/jobs", &[], request.to_string().as_bytes()).expect(202);
        }
    }
    let begun = std::time::Instant::now();
    while get(server, "/jobs?status=completed").as_array().unwrap().len() < 4 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", get(server, "/jobs"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn draw(server: &Server, cookie: &str) -> Value {
    server.ask("POST", "/kiln/v1/pairs", &[cookie], b"{}").expect(200).json()
}

#[test]
fn votes_are_blind_until_cast_and_count_once() {
    let server = serve(&[&RUNS], &[]);
    let nothing = server.ask("POST", "/kiln/v1/pairs", &[], b"").expect(404);
    assert!(nothing.header("set-cookie").is_none());
    images(&server);
    let first = server.ask("POST", "/kiln/v1/pairs", &[], b"{\"prompt\": \"red apple\"}").expect(200);
    let cookie = first.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = format!("cookie: {}", cookie.split(';').next().unwrap());
    let with_adapter = "nano-flux + quickstart-step-4";
    let mut sides = BTreeMap::new();
    for round in 0..24 {
        let pair = draw(&server, &cookie);
        let known = pair.to_string();
        assert!(!known.contains("nano") && !known.contains("quickstart"), "{known}");
        let shown = ["left", "right"].map(|side| {
            let answer = server.ask("GET", pair[side].as_str().unwrap(), &[&cookie], &[]).expect(200);
            let headers: Vec<_> = answer.headers.iter().filter(|(name, _)| name != "date").cloned().collect();
            (headers, answer.body)
        });
        // Everything but the pixels is the same, including the length.
        assert_eq!(shown[0].0, shown[1].0);
        assert_eq!(shown[0].1.len(), shown[1].1.len());
        assert_ne!(shown[0].1, shown[1].1);
        let vote = |choice: &str| {
            let body = json!({"pair": pair["pair"], "choice": choice}).to_string();
            server.ask("POST", "/kiln/v1/votes", &[&cookie], body.as_bytes())
        };
        let choice = if round % 4 == 0 { "both_bad" } else { "left" };
        let revealed = vote(choice).expect(200).json();
        assert_eq!(vote(choice).expect(200).json(), revealed);
        assert_eq!(vote("right").status, 409);
        *sides.entry(revealed["left"]["name"].as_str().unwrap().to_string()).or_insert(0) += 1;
    }
    assert_eq!(sides.keys().collect::<Vec<_>>(), ["nano-flux", with_adapter]);
    assert!(
        sides.values().all(|&count| (11..=13).contains(&count)),
        "each stands on either side equally often: {sides:?}"
    );
    let board = get(&server, "/leaderboard");
    assert_eq!(board.as_array().unwrap().len(), 2);
    assert_eq!((board[0]["votes"].as_u64(), board[0]["ties"].as_u64()), (Some(24), Some(6)));
    assert!(board[0]["low"].as_f64() <= board[0]["strength"].as_f64(), "{board}");
    assert_eq!(get(&server, "/leaderboard/prompts"), json!([{"prompt": "red apple", "votes": 24}]));
    assert_eq!(get(&server, "/leaderboard?prompt=none"), json!([]));
    let csv = server.ask("GET", "/kiln/v1/leaderboard.csv", &[], &[]).expect(200);
    assert_eq!(String::from_utf8(csv.body).unwrap().lines().count(), 3);
}

/// Before the vote, only the pixels tell a voter's browser which side has the adapter.
#[test]
fn of_four_hundred_pairs_neither_address_nor_size_nor_headers_nor_time_tells_the_sides() {
    const PAIRS: usize = 400;
    let server = serve(&[&RUNS], &[]);
    images(&server);
    let first = server.ask("POST", "/kiln/v1/pairs", &[], b"{}").expect(200);
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap();
    let cookie = format!("cookie: {cookie}");
    // How often the side with the adapter is the left one, and how often it takes longer.
    let (mut left, mut time) = (0, 0);
    for round in 0..PAIRS {
        let pair = draw(&server, &cookie);
        let mut shown = ["left", "right"].map(|side| (side, 0.0, Vec::new(), 0, String::new()));
        // Each side is requested first equally often, like a browser that requests both.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for at in order {
            let (side, seconds, headers, bytes, url) = &mut shown[at];
            *url = pair[*side].as_str().unwrap().to_string();
            let begun = std::time::Instant::now();
            let answer = server.ask("GET", url, &[&cookie], &[]).expect(200);
            *seconds = begun.elapsed().as_secs_f64();
            *headers = answer.headers.into_iter().filter(|(name, _)| name != "date").collect();
            *bytes = answer.body.len();
        }
        let [one, other] = &shown;
        assert_eq!((&one.2, one.3), (&other.2, other.3));
        assert_eq!(one.4.replace("left", "right"), other.4);
        let vote = json!({"pair": pair["pair"], "choice": "tie"}).to_string();
        let revealed = server.ask("POST", "/kiln/v1/votes", &[&cookie], vote.as_bytes()).expect(200).json();
        let is_left = revealed["left"]["name"].as_str().unwrap().contains("quickstart");
        let (with, without) = if is_left { (one, other) } else { (other, one) };
        left += usize::from(is_left);
        time += usize::from(with.1 > without.1);
    }
    let shares = [left, time].map(|count| count as f64 / PAIRS as f64);
    std::io::Write::write_all(&mut std::io::stdout(), format!("told by side and by time: {shares:?}\n").as_bytes())
        .unwrap();
    // Four standard deviations of a fair coin.
    assert!(shares.iter().all(|share| (0.4..=0.6).contains(share)), "{shares:?}");
}

#[test]
fn an_invalid_vote_is_refused_by_name() {
    let server = serve(&[], &[]);
    for (body, status) in [
        ("{\"pair\": \"x\", \"choice\": \"left\"}", 404),
        ("{\"pair\": \"x\", \"choice\": \"up\"}", 400),
        ("{\"pair\": \"x\"}", 400),
        ("{\"pair\": \"x\", \"choice\": \"left\", \"name\": 1}", 400),
        ("[]", 400),
    ] {
        assert_eq!(server.ask("POST", "/kiln/v1/votes", &[], body.as_bytes()).status, status, "{body}");
    }
    assert_eq!(server.ask("GET", "/kiln/v1/pairs/x/left", &[], &[]).status, 404);
    assert_eq!(server.ask("GET", "/kiln/v1/pairs/x/middle", &[], &[]).status, 404);
}

//! Captions that are edited through the server.

use std::fs;

use serde_json::{Value, json};

use super::{EVIL, Server, dataset, get, serve};
use crate::support::server::Answer;

fn put(server: &Server, file: &str, text: &str, seen: &str) -> Answer {
    let path = format!("/kiln/v1/datasets/set/images/{file}/caption");
    server.ask("PUT", &path, &[&format!("if-match: {seen}")], text.as_bytes())
}

fn etag(caption: &Value) -> String {
    caption["etag"].as_str().unwrap().into()
}

#[test]
fn a_caption_is_written_over_the_one_that_was_seen_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "set", 3);
    let server = serve(&[], &[&set]);
    let images = get(&server, "/datasets/set/images?limit=10");
    assert_eq!(images["total"], 3);
    let file = images["images"][2]["file"].as_str().unwrap();
    assert!(file.starts_with("more/"), "{images}");
    let named = file.replace('/', "%2F");
    let caption = get(&server, &format!("/datasets/set/images/{named}/caption"));
    assert_eq!(caption["etag"], images["images"][2]["etag"]);
    let saved = put(&server, &named, EVIL, &etag(&caption)).expect(200).json();
    let text = set.join(file).with_extension("txt");
    assert_eq!(fs::read_to_string(&text).unwrap().trim(), EVIL);
    let refused = put(&server, &named, "mine", &etag(&caption)).expect(409).json();
    assert_eq!(refused["error"]["current"], saved);
    assert_eq!(
        (refused["error"]["current"]["text"].as_str(), refused["error"]["code"].as_str()),
        (Some(EVIL), Some("changed"))
    );
    put(&server, &named, "mine", &etag(&saved)).expect(200);
    assert_eq!(fs::read_to_string(&text).unwrap(), "mine\n");
    let path = format!("/kiln/v1/datasets/set/images/{named}/caption");
    assert_eq!(server.ask("PUT", &path, &[], b"x").status, 428);
    assert_eq!(server.ask("PUT", &path, &["if-match: \"x\""], &[0xff, 0xfe]).status, 400);
    assert_eq!(fs::read_to_string(&text).unwrap(), "mine\n");
}

#[test]
fn of_two_tabs_that_edit_one_caption_no_word_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "set", 1);
    let server = serve(&[], &[&set]);
    let file = get(&server, "/datasets/set/images")["images"][0]["file"].as_str().unwrap().to_string();
    let text = set.join(&file).with_extension("txt");
    fs::write(&text, "start").unwrap();
    // Each adds its words to the current text; whoever comes too late reads it again.
    std::thread::scope(|scope| {
        for tab in 0..2 {
            let (server, file) = (&server, &file);
            scope.spawn(move || {
                for word in 0..25 {
                    let mut seen = get(server, &format!("/datasets/set/images/{file}/caption"));
                    loop {
                        let text = format!("{} {tab}-{word}", seen["text"].as_str().unwrap());
                        let answer = put(server, file, &text, &etag(&seen));
                        if answer.status == 200 {
                            break;
                        }
                        seen = answer.expect(409).json()["error"]["current"].clone();
                    }
                }
            });
        }
    });
    let written = fs::read_to_string(&text).unwrap();
    let mut words: Vec<&str> = written.split_whitespace().collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), 51, "{written}");
}

#[test]
fn a_server_that_is_killed_leaves_the_old_caption_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "set", 1);
    let mut server = serve(&[], &[&set]);
    let file = get(&server, "/datasets/set/images")["images"][0]["file"].as_str().unwrap().to_string();
    let text = set.join(&file).with_extension("txt");
    let long = |round: usize| format!("{round} {}", "word ".repeat(8000));
    for round in 0..20 {
        let seen = get(&server, &format!("/datasets/set/images/{file}/caption"));
        let before = fs::read_to_string(&text).unwrap();
        let path = format!("/kiln/v1/datasets/set/images/{file}/caption");
        let after = long(round);
        let asked = server.send("PUT", &path, &[&format!("if-match: {}", etag(&seen))], after.as_bytes());
        std::thread::sleep(std::time::Duration::from_micros(300 * round as u64));
        server.signal(libc::SIGKILL);
        drop((server, asked));
        let now = fs::read_to_string(&text).unwrap();
        assert!(now == before || now.trim() == after.trim(), "round {round}: {} bytes", now.len());
        server = serve(&[], &[&set]);
        let names = fs::read_dir(&set).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.into_iter().any(|name| name.ends_with(".partial")), "nothing of the dead is left");
    }
}

#[test]
fn replacing_is_previewed_before_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "set", 5);
    let server = serve(&[], &[&set]);
    let replace = |wish: Value| server.ask("POST", "/kiln/v1/datasets/set/replace", &[], wish.to_string().as_bytes());
    let preview = replace(json!({"find": "blue ink", "replace": "zpf", "preview": true})).expect(200).json();
    assert_eq!((preview["changes"].as_array().unwrap().len(), preview["done"].as_bool()), (5, Some(false)));
    let refused = replace(json!({"find": "blue ink", "replace": "zpf"})).expect(409).json();
    assert_eq!(refused["error"]["current"], preview);
    let done = replace(json!({"find": "blue ink", "replace": "zpf", "token": preview["token"]})).expect(200).json();
    assert_eq!(done["done"], true);
    let detail = get(&server, "/datasets/set");
    assert_eq!(detail["tags"][0], json!({"tag": "zpf", "count": 5}));
    assert_eq!(get(&server, "/datasets/set/images?without=ZPF")["total"], 0);
    let unknown = replace(json!({"find": "a", "replace": "b", "prevew": true})).expect(400).json();
    assert_eq!(unknown["error"]["hint"], "did you mean `preview`?");
}

#[test]
fn images_are_served_small_and_only_those_of_the_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "set", 2);
    image::RgbImage::from_pixel(1200, 600, image::Rgb([9, 99, 200])).save(set.join("large.png")).unwrap();
    fs::write(set.join("large.txt"), "large").unwrap();
    fs::write(set.join("broken.png"), "no image").unwrap();
    fs::write(folder.path().join("secret.png"), "secret").unwrap();
    let server = serve(&[], &[&set]);
    let ask = |file: &str, header: &str| {
        server.ask("GET", &format!("/kiln/v1/datasets/set/images/{file}/thumbnail"), &[header], &[])
    };
    let small = ask("large.png", "a: b").expect(200);
    assert_eq!(image::load_from_memory(&small.body).unwrap().into_rgb8().dimensions(), (320, 160));
    let tag = small.header("etag").unwrap();
    assert_eq!(ask("large.png", &format!("if-none-match: {tag}")).status, 304);
    assert_eq!(ask("broken.png", "a: b").status, 422);
    for path in
        ["..%2Fsecret.png", "%2e%2e%2fsecret.png", "..%5Csecret.png", "%2Fetc%2Fpasswd", "large.txt", "%00", "."]
    {
        assert_eq!(ask(path, "a: b").status, 404, "{path}");
    }
    let problems = get(&server, "/datasets/set")["problems"].to_string();
    assert!(problems.contains("broken.png"), "{problems}");
}

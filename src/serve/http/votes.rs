//! Pairs of images, votes on them, and the leaderboard.

use std::io::Cursor;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use image::{
    ExtendedColorType, ImageEncoder, ImageFormat,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App,
    auth::Caller,
    blocking, body,
    errors::{Answer, Failure},
    fields::{Asked, Fields},
};
use crate::{
    error::Error,
    serve::{
        job::{JobId, Status},
        page::candidates,
        standing::{Standing, csv},
        votes::{Choice, NoVote, Revealed, Side, Voter},
    },
};

/// The cookie that tells apart the people who share a key.
const COOKIE: &str = "kiln-voter";

/// The largest request body here, in bytes.
const LONGEST: u64 = 64 << 10;

/// A pair to vote on, without the contestants.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Drawn {
    pair: String,
    /// The prompt of both images.
    prompt: String,
    /// The URL of the left image.
    left: String,
    /// The URL of the right image.
    right: String,
}

/// Selects votes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only votes on images of this prompt.
    prompt: Option<String>,
}

/// A prompt and the number of votes on its images.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Voted {
    prompt: String,
    votes: u64,
}

/// Draw a pair of your images to vote on, which differ only in base model or adapters
///
/// In the JSON body, `prompt` selects images of this prompt. A cookie identifies the voter.
#[utoipa::path(post, path = "/kiln/v1/pairs", tag = "votes", request_body = serde_json::Value,
    responses((status = 200, description = "A pair", body = Drawn), (status = 404, description = "No two images can be compared")))]
pub(super) async fn draw(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Response> {
    let (id, is_new) = match voter(asked.headers()) {
        Some(id) => (id, false),
        None => (Uuid::now_v7().to_string(), true),
    };
    let body = body::read(&app, asked, LONGEST).await?;
    let mut fields = Fields::from_json(if body.is_empty() { b"{}" } else { &body })?;
    let prompt: Option<String> = fields.take("prompt")?;
    fields.finish()?;
    let voter = Voter { owner: caller.owner, id: id.clone() };
    let drawn = blocking(move || {
        let jobs = app.service.jobs(&voter.owner);
        let done = jobs.iter().filter(|job| job.status == Status::Completed);
        let candidates: Vec<_> = done.flat_map(candidates).collect();
        app.page.votes.draw(&candidates, prompt.as_deref(), &voter)
    });
    let pair = drawn.await?.map_err(|e| Failure::broken(&e))?.ok_or_else(|| {
        let error = Error::setting(
            "pair",
            "there are no two images of the same prompt and seed from different models or adapters",
        );
        Failure::not_there(&error.hint("generate images with and without an adapter, with the same seed and settings"))
    })?;
    let [left, right] = ["left", "right"].map(|side| format!("/kiln/v1/pairs/{}/{side}", pair.pair));
    let mut response = Json(Drawn { pair: pair.pair, prompt: pair.prompt, left, right }).into_response();
    if is_new {
        let cookie = format!("{COOKIE}={id}; Path=/kiln/v1; Max-Age=31536000; HttpOnly; SameSite=Strict");
        let value = cookie.parse().map_err(|_| Failure::broken(&Error::setting("voter", "has no name")))?;
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// Get a side of a pair
///
/// Both sides are PNG files of equal length, without compression or metadata.
#[utoipa::path(get, path = "/kiln/v1/pairs/{pair}/{side}", tag = "votes",
    params(("pair" = String, Path, description = "Name of the pair"), ("side" = String, Path, description = "`left` or `right`")),
    responses((status = 200, description = "The image", content_type = "image/png", body = Vec<u8>),
        (status = 404, description = "There is no such pair"), (status = 410, description = "The image has expired and was removed")))]
pub(super) async fn side(
    State(app): State<App>,
    caller: Caller,
    Path((pair, side)): Path<(String, String)>,
) -> Answer<Response> {
    let side = match side.as_str() {
        "left" => Side::Left,
        "right" => Side::Right,
        _ => return Err(Failure::not_found("side", "is not `left` or `right`")),
    };
    let bytes = blocking(move || {
        let image = app.page.votes.image(&pair, side, &caller.owner).map_err(|e| Failure::broken(&e))?;
        let image = image.ok_or_else(|| Failure::not_found("pair", "not found"))?;
        let (id, number) = image.rsplit_once('/').unwrap_or_default();
        let place = id.parse::<JobId>().ok().zip(number.parse().ok());
        let (id, number) = place.ok_or_else(|| Failure::not_found("pair", "has no such image"))?;
        let png = app.service.image(id, &caller.owner, number).map_err(|missing| Failure::missing("image", missing))?;
        alike(&png)
    });
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], bytes.await??).into_response())
}

/// The image as a PNG whose length depends only on its dimensions.
fn alike(png: &[u8]) -> Answer<Vec<u8>> {
    let broken = |e: image::ImageError| Failure::broken(&Error::setting("image", e.to_string()));
    let image = image::load_from_memory_with_format(png, ImageFormat::Png).map_err(broken)?.into_rgb8();
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Uncompressed, FilterType::NoFilter)
        .write_image(&image, image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(broken)?;
    Ok(bytes.into_inner())
}

/// Vote on a pair; the response reveals what made each side
///
/// The JSON body has `pair` and `choice`: `left`, `right`, `tie` or `both_bad`.
#[utoipa::path(post, path = "/kiln/v1/votes", tag = "votes", request_body = serde_json::Value,
    responses((status = 200, description = "Counted", body = Revealed), (status = 404, description = "There is no such pair"),
        (status = 409, description = "There is already a different vote on this pair")))]
pub(super) async fn vote(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Json<Revealed>> {
    let id = voter(asked.headers()).unwrap_or_default();
    let mut fields = Fields::from_json(&body::read(&app, asked, LONGEST).await?)?;
    let (pair, choice): (String, Choice) = (fields.need("pair")?, fields.need("choice")?);
    fields.finish()?;
    let voter = Voter { owner: caller.owner, id };
    let counted = blocking(move || app.page.votes.vote(&pair, choice, &voter)).await?;
    counted.map(Json).map_err(|why| match why {
        NoVote::Unknown => Failure::not_found("pair", "not found"),
        NoVote::Already => {
            let error = Error::setting("pair", "already has a different vote");
            Failure::new(StatusCode::CONFLICT, "voted", &error)
        }
        NoVote::Failed(error) => Failure::broken(&error),
    })
}

async fn board(app: App, caller: Caller, which: Which) -> Answer<Vec<Standing>> {
    let board = blocking(move || app.page.votes.leaderboard(&caller.owner, which.prompt.as_deref())).await?;
    board.map_err(|e| Failure::broken(&e))
}

/// Get the leaderboard of your votes: Bradley–Terry strengths with intervals, the strongest first
#[utoipa::path(get, path = "/kiln/v1/leaderboard", tag = "votes", params(Which),
    responses((status = 200, description = "All contestants with votes", body = Vec<Standing>)))]
pub(super) async fn leaderboard(
    State(app): State<App>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Answer<Json<Vec<Standing>>> {
    board(app, caller, which).await.map(Json)
}

/// Get the leaderboard as CSV
#[utoipa::path(get, path = "/kiln/v1/leaderboard.csv", tag = "votes", params(Which),
    responses((status = 200, description = "One row per contestant", content_type = "text/csv", body = String)))]
pub(super) async fn leaderboard_csv(
    State(app): State<App>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Answer<Response> {
    let text = csv(&board(app, caller, which).await?);
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response())
}

/// List the prompts that you voted on, the most frequent first
#[utoipa::path(get, path = "/kiln/v1/leaderboard/prompts", tag = "votes",
    responses((status = 200, description = "All prompts", body = Vec<Voted>)))]
pub(super) async fn prompts(State(app): State<App>, caller: Caller) -> Answer<Json<Vec<Voted>>> {
    let prompts = blocking(move || app.page.votes.prompts(&caller.owner)).await?.map_err(|e| Failure::broken(&e))?;
    Ok(Json(prompts.into_iter().map(|(prompt, votes)| Voted { prompt, votes }).collect()))
}

/// The voter's ID from the cookie.
fn voter(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, id) = pairs.find(|(name, _)| *name == COOKIE)?;
    Uuid::try_parse(id).ok().map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    #[test]
    fn files_of_one_size_have_one_length_whatever_they_show() {
        let file = |pixel: fn(u32, u32) -> Rgb<u8>| {
            let mut bytes = Cursor::new(Vec::new());
            RgbImage::from_fn(48, 32, pixel).write_to(&mut bytes, ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        let [flat, busy] = [
            file(|_, _| Rgb([9; 3])),
            file(|x, y| Rgb([(x * 37 + y * 101) as u8, (x * y * 7) as u8, (x ^ (y * 5)) as u8])),
        ];
        assert_ne!(flat.len(), busy.len());
        let (one, other) = (alike(&flat).unwrap(), alike(&busy).unwrap());
        assert_eq!(one.len(), other.len());
        let same = |a: &[u8], b: &[u8]| image::load_from_memory(a).unwrap() == image::load_from_memory(b).unwrap();
        assert!(same(&one, &flat) && same(&other, &busy));
    }

    #[test]
    fn a_voter_is_known_by_the_cookie_alone() {
        let id = Uuid::now_v7().to_string();
        let named = |text: String| voter(&HeaderMap::from_iter([(header::COOKIE, text.parse().unwrap())]));
        assert_eq!(named(format!("a=b; {COOKIE}={id}")), Some(id));
        assert_eq!(named(format!("{COOKIE}=me")), None);
        assert_eq!(voter(&HeaderMap::new()), None);
    }
}

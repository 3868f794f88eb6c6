//! Datasets: images, and captions that are only overwritten by callers who have seen them.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    App, blocking, body,
    errors::{Answer, Failure},
    fields::{Asked, Fields},
    runs::tagged,
};
use crate::{
    error::Error,
    serve::{
        caption::{Caption, NotSaved},
        datasets::{DatasetDetail, DatasetPage, DatasetSummary, Wanted},
        replacement::{NotReplaced, Replaced, Replacement},
    },
};

/// How many images are decoded for thumbnails at the same time.
pub(super) const DECODED_AT_ONCE: usize = 2;

/// The largest request body here, in bytes.
const LONGEST: u64 = 256 << 10;

fn no_set() -> Failure {
    Failure::not_found("dataset", "not found")
}

fn no_image() -> Failure {
    Failure::not_found("image", "not found")
}

/// List the datasets in the configured folders
#[utoipa::path(get, path = "/kiln/v1/datasets", tag = "datasets",
    responses((status = 200, description = "All datasets", body = Vec<DatasetSummary>)))]
pub(super) async fn list(State(app): State<App>) -> Answer<Json<Vec<DatasetSummary>>> {
    blocking(move || app.page.datasets.list()).await?.map(Json).map_err(|e| Failure::broken(&e))
}

/// Get a dataset: what training would refuse, and its tags
#[utoipa::path(get, path = "/kiln/v1/datasets/{name}", tag = "datasets", params(("name" = String, Path, description = "Name of the dataset")),
    responses((status = 200, description = "The dataset", body = DatasetDetail), (status = 404, description = "There is no such dataset")))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<DatasetDetail>> {
    let detail = blocking(move || app.page.datasets.detail(&name)).await?.map_err(|e| Failure::broken(&e))?;
    detail.map(Json).ok_or_else(no_set)
}

/// List images of a dataset with their captions
#[utoipa::path(get, path = "/kiln/v1/datasets/{name}/images", tag = "datasets", params(("name" = String, Path, description = "Name of the dataset"), Wanted),
    responses((status = 200, description = "The matching images", body = DatasetPage), (status = 404, description = "There is no such dataset")))]
pub(super) async fn images(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(wanted): Asked<Wanted>,
) -> Answer<Json<DatasetPage>> {
    let page = blocking(move || app.page.datasets.images(&name, &wanted)).await?.map_err(|e| Failure::broken(&e))?;
    page.map(Json).ok_or_else(no_set)
}

/// Get the thumbnail of an image
#[utoipa::path(get, path = "/kiln/v1/datasets/{name}/images/{file}/thumbnail", tag = "datasets",
    params(("name" = String, Path, description = "Name of the dataset"), ("file" = String, Path, description = "The image, `/` as `%2F`")),
    responses((status = 200, description = "JPEG, or PNG if the image itself is small", content_type = "image/jpeg", body = Vec<u8>),
        (status = 404, description = "There is no such image"), (status = 422, description = "The image cannot be read")))]
pub(super) async fn thumbnail(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    // Decoding takes memory, so only a few at a time.
    let _turn = app.decoding.acquire().await;
    let made = {
        let app = app.clone();
        blocking(move || {
            let path = app.page.datasets.image(&name, &file).map_err(|e| Failure::broken(&e))?.ok_or_else(no_image)?;
            let tag = format!("\"{}\"", app.page.thumbnails.name(&path).map_err(|_| no_image())?);
            let thumbnail = app.page.thumbnails.of(&path).map_err(|error| {
                let error = Error::setting("image", error.problem.to_string());
                Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "unreadable", &error)
            })?;
            Ok::<_, Failure>((tag, thumbnail))
        })
    };
    let (tag, thumbnail) = made.await??;
    Ok(tagged(&headers, tag, thumbnail.kind, thumbnail.bytes))
}

/// Get the caption of an image, with its `ETag`
#[utoipa::path(get, path = "/kiln/v1/datasets/{name}/images/{file}/caption", tag = "datasets",
    params(("name" = String, Path, description = "Name of the dataset"), ("file" = String, Path, description = "The image, `/` as `%2F`")),
    responses((status = 200, description = "The caption", body = Caption), (status = 404, description = "There is no such image")))]
pub(super) async fn caption(State(app): State<App>, Path((name, file)): Path<(String, String)>) -> Answer<Response> {
    let caption = blocking(move || app.page.datasets.caption(&name, &file)).await?.map_err(|e| Failure::broken(&e))?;
    Ok(captioned(caption.ok_or_else(no_image)?))
}

/// Replace the caption that has the `ETag` in `If-Match`
///
/// The body is the new caption as text. If the caption has changed since, nothing is written, and the error has it as `current`.
#[utoipa::path(put, path = "/kiln/v1/datasets/{name}/images/{file}/caption", tag = "datasets",
    params(("name" = String, Path, description = "Name of the dataset"), ("file" = String, Path, description = "The image, `/` as `%2F`"),
        ("If-Match" = String, Header, description = "The `ETag` of the caption to replace")),
    request_body(content = String, content_type = "text/plain", description = "The caption"),
    responses((status = 200, description = "Saved", body = Caption), (status = 404, description = "There is no such image"),
        (status = 409, description = "The caption has changed since"), (status = 422, description = "The caption cannot be edited here"),
        (status = 428, description = "`If-Match` is missing")))]
pub(super) async fn save(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    asked: Request,
) -> Answer<Response> {
    let seen = asked.headers().get(header::IF_MATCH).and_then(|value| value.to_str().ok()).map(String::from);
    let seen = seen.ok_or_else(|| {
        let error = Error::setting("If-Match", "is missing").hint("send the `ETag` of the caption to replace");
        Failure::new(StatusCode::PRECONDITION_REQUIRED, "no_precondition", &error)
    })?;
    let body = body::read(&app, asked, LONGEST).await?;
    let text = String::from_utf8(body).map_err(|_| Error::setting("body", "is not UTF-8"))?;
    let saved = blocking(move || app.page.datasets.save(&name, &file, &text, &seen)).await?;
    saved.map(captioned).map_err(refused)
}

fn captioned(caption: Caption) -> Response {
    let tag = caption.etag.clone().map(|tag| [(header::ETAG, tag)]);
    ([(header::CACHE_CONTROL, "no-store")], tag, Json(caption)).into_response()
}

fn refused(why: NotSaved) -> Failure {
    let unprocessable = |problem: String| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "read_only", &Error::setting("caption", problem))
    };
    match why {
        NotSaved::Unknown => no_image(),
        NotSaved::ReadOnly(problem) => unprocessable(problem),
        NotSaved::Invalid(problem) => Failure::invalid(&Error::setting("caption", problem)),
        NotSaved::Conflict(current) => {
            let error = Error::setting("caption", "has been changed by somebody else");
            Failure::changed(&error.hint("look at `current`, and save again with its `etag`"), &current)
        }
        NotSaved::Failed(error) => Failure::broken(&error),
    }
}

/// Replace a text in all captions of a dataset, or preview the changes
///
/// Call it first with `preview`, then with the preview's `token`. If captions have changed since, nothing is written, and the error
/// has a new preview as `current`.
#[utoipa::path(post, path = "/kiln/v1/datasets/{name}/replace", tag = "datasets", params(("name" = String, Path, description = "Name of the dataset")),
    request_body = Replacement,
    responses((status = 200, description = "The changes, previewed or done", body = Replaced), (status = 404, description = "There is no such dataset"),
        (status = 409, description = "Captions have changed since the preview")))]
pub(super) async fn replace(State(app): State<App>, Path(name): Path<String>, asked: Request) -> Answer<Response> {
    let mut fields = Fields::from_json(&body::read(&app, asked, LONGEST).await?)?;
    let replacement = Replacement {
        find: fields.need("find")?,
        replace: fields.need("replace")?,
        preview: fields.take("preview")?.unwrap_or_default(),
        token: fields.take("token")?,
    };
    fields.finish()?;
    let done = blocking(move || app.page.datasets.replace(&name, &replacement)).await?;
    match done {
        Ok(replaced) => Ok(Json(replaced).into_response()),
        Err(NotReplaced::Conflict(now)) => {
            let error = Error::setting("token", "does not belong to a preview of the current captions");
            Err(Failure::changed(&error.hint("look at `current`, and send its `token`"), &now))
        }
        Err(NotReplaced::Unknown) => Err(no_set()),
        Err(NotReplaced::Nothing) => Err(Error::setting("find", "is empty").into()),
        Err(NotReplaced::Stopped(why)) => Err(refused(why)),
    }
}

//! Requests in OpenAI's format.

use serde_json::Value;
use utoipa::ToSchema;

use super::super::{
    App,
    body::Form,
    errors::{Answer, Failure},
    fields::Fields,
    images::{self, Format, QUALITY},
    jobs,
};
use crate::{
    error::{Error, Result},
    serve::job::{FileBytes, JobRequest, LoraChoice},
};

/// The maximum number of images per request, and of previews per image of a stream.
const MOST: [usize; 2] = [10, 3];

/// A job, and how to send its images.
#[derive(Debug)]
pub(super) struct Wanted {
    pub request: JobRequest,
    pub sending: Sending,
}

/// How to send images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sending {
    pub format: Format,
    /// The quality of a JPEG.
    pub quality: u8,
    /// Send URLs instead of base64.
    pub url: bool,
    pub stream: bool,
    /// The number of previews per image of a stream.
    pub partial_images: usize,
}

/// OpenAI's parameters and kiln's own. Unknown ones are refused by name.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read parameter by parameter, so that a wrong one can be named")]
pub(in super::super) struct Generation {
    /// The prompt.
    prompt: String,
    /// The name of a model. Default: the first.
    model: Option<String>,
    /// Number of images, from 1 to 10. Default 1.
    n: Option<usize>,
    /// `auto`, or width and height in pixels such as `1024x1024`. Default: the model's native size.
    size: Option<String>,
    /// `b64_json` or `url`. Default `b64_json`.
    response_format: Option<String>,
    /// `png`, `jpeg` or `webp`. Default `png`.
    output_format: Option<String>,
    /// Quality of a JPEG, from 1 to 100. Default 90.
    output_compression: Option<u8>,
    /// Whether to send events instead of one answer.
    stream: Option<bool>,
    /// Number of previews per image of a stream, from 0 to 3. Default 0.
    partial_images: Option<usize>,
    /// `auto` or `standard`; use `steps` instead.
    quality: Option<String>,
    /// `auto` or `opaque`.
    background: Option<String>,
    /// No effect.
    user: Option<String>,
    /// kiln only: the adapters to apply, all at once.
    lora: Option<Vec<LoraChoice>>,
    /// kiln only: the seed of the first image; each further image uses the next seed. Default: random.
    seed: Option<u64>,
    /// kiln only: number of denoising steps. Default: the model's.
    steps: Option<usize>,
    /// kiln only: guidance scale. Default: the model's.
    guidance: Option<f64>,
    /// kiln only: scale of classifier-free guidance with a negative prompt, if `guidance` is distilled. Default: the model's.
    true_guidance: Option<f64>,
    /// kiln only: the negative prompt.
    negative_prompt: Option<String>,
    /// kiln only: the sampler. Default: the model's.
    scheduler: Option<String>,
    /// kiln only: image guidance scale, for models that edit. Default: the model's.
    image_guidance: Option<f64>,
    /// kiln only: denoising strength, if an image is changed.
    strength: Option<f64>,
}

/// A form with an image to edit, and the parameters of a generation.
#[derive(ToSchema)]
#[expect(dead_code, reason = "as Generation")]
pub(in super::super) struct Edit {
    #[serde(flatten)]
    generation: Generation,
    /// The image: PNG, JPEG or WebP. May also be named `image[]`.
    #[schema(format = Binary, value_type = String)]
    image: Vec<u8>,
    /// A mask of the same size: transparent where the image may change or, without an alpha channel, white there.
    #[schema(format = Binary, value_type = Option<String>)]
    mask: Option<Vec<u8>>,
}

/// Reads a request to generate images from a prompt.
pub(super) fn generation(app: &App, mut fields: Fields) -> Answer<Wanted> {
    let wanted = parameters(app, &mut fields, false)?;
    fields.finish()?;
    Ok(wanted)
}

/// Reads a request to edit an image.
pub(super) fn edit(app: &App, form: Form) -> Answer<Wanted> {
    let Form { mut fields, files } = form;
    let mut wanted = parameters(app, &mut fields, true)?;
    fields.finish()?;
    let most = app.limits.pixels;
    for (name, bytes) in files {
        let place = match name.as_str() {
            "image" | "image[]" => &mut wanted.request.image,
            "mask" => &mut wanted.request.mask,
            _ => return Err(Failure::unknown_parameter(&Error::setting(name, "is not a known file parameter"))),
        };
        let field = name.trim_end_matches("[]");
        if place.is_some() {
            return Err(Error::setting(field, "occurs more than once").hint("send one image").into());
        }
        let bytes = match field {
            "mask" => images::mask_of_transparency(field, &bytes, most)?,
            _ => bytes.to_vec(),
        };
        *place = Some(FileBytes(bytes));
    }
    if wanted.request.image.is_none() {
        return Err(Error::setting("image", "is missing").hint("send it as a file of the form").into());
    }
    Ok(wanted)
}

fn parameters(app: &App, fields: &mut Fields, edits: bool) -> Answer<Wanted> {
    let mut request = JobRequest::new(fields.need::<String>("prompt")?);
    request.model = model(app, fields.take("model")?, edits)?;
    request.count = within("n", fields.take("n")?.unwrap_or(1), 1, MOST[0])?;
    (request.width, request.height) = size(fields.take("size")?)?;
    request.loras = fields.take("lora")?.unwrap_or_default();
    jobs::sampling(fields, &mut request)?;
    for (name, known, instead) in [
        ("quality", ["auto", "standard"], "use `steps`"),
        ("background", ["auto", "opaque"], "kiln's images are opaque"),
    ] {
        let word: Option<String> = fields.take(name)?;
        if let Some(word) = word.filter(|word| !known.contains(&word.as_str())) {
            return Err(Error::setting(name, format!("`{word}` is not supported")).hint(instead).into());
        }
    }
    fields.take::<Value>("user")?;
    let sending = sending(fields)?;
    request.previews = sending.stream && sending.partial_images > 0;
    Ok(Wanted { request, sending })
}

fn sending(fields: &mut Fields) -> Result<Sending> {
    let format: Format = fields.take("output_format")?.unwrap_or_default();
    let compression: Option<u8> = fields.take("output_compression")?;
    if compression.is_some_and(|quality| quality != 100) && format != Format::Jpeg {
        let problem = format!("is not supported by {}, which kiln writes losslessly", format.word());
        return Err(Error::setting("output_compression", problem).hint("use `output_format` jpeg"));
    }
    let quality = within("output_compression", compression.unwrap_or(QUALITY).into(), 1, 100)? as u8;
    let url = match fields.take::<String>("response_format")?.as_deref() {
        None | Some("b64_json") => false,
        Some("url") => true,
        Some(_) => return Err(Error::setting("response_format", "is neither `b64_json` nor `url`")),
    };
    let stream: bool = fields.take("stream")?.unwrap_or_default();
    let partial_images = within("partial_images", fields.take("partial_images")?.unwrap_or(0), 0, MOST[1])?;
    match (stream, partial_images, url) {
        (false, 1.., _) => Err(Error::setting("partial_images", "requires `stream`")),
        (true, _, true) => Err(Error::setting("response_format", "must be `b64_json` in a stream")),
        _ => Ok(Sending { format, quality, url, stream, partial_images }),
    }
}

fn within(field: &str, number: usize, least: usize, most: usize) -> Result<usize> {
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(Error::setting(field, format!("must be at least {least} and at most {most}, not {number}"))),
    }
}

/// The requested model. Without one, an edit uses the first model that edits by instruction, if there is one.
fn model(app: &App, name: Option<String>, edits: bool) -> Answer<Option<String>> {
    let models = app.service.models();
    let Some(name) = name else {
        return Ok(models.into_iter().find(|model| edits && model.edits).map(|model| model.name));
    };
    if models.iter().any(|model| model.name == name) {
        return Ok(Some(name));
    }
    let known: Vec<_> = models.into_iter().map(|model| model.name).collect();
    let error = Error::setting("model", "is not served here").hint(format!("use one of {}", known.join(", ")));
    Err(Failure::not_there(&error).with_code("model_not_found"))
}

/// Parses width and height.
fn size(text: Option<String>) -> Result<(Option<usize>, Option<usize>)> {
    let Some(text) = text.filter(|text| text != "auto") else { return Ok((None, None)) };
    let side = |side: &str| side.parse().ok().filter(|&side: &usize| side > 0);
    let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
    let (width, height) = sides.ok_or_else(|| {
        Error::setting("size", "is not a width and a height in pixels").hint("write it as `1024x1024`, or `auto`")
    })?;
    Ok((Some(width), Some(height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(body: &str) -> std::result::Result<Sending, String> {
        sending(&mut Fields::from_json(body.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_size_is_two_numbers_or_the_models_own() {
        assert_eq!(size(Some("64x48".into())).unwrap(), (Some(64), Some(48)));
        assert_eq!((size(None).unwrap(), size(Some("auto".into())).unwrap()), ((None, None), (None, None)));
        for wrong in ["", "64", "64x", "x64", "64x-1", "0x64", "64X64", "64x64x64", "99999999999999999999x1"] {
            assert!(size(Some(wrong.into())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert_eq!(
            sent("{}").unwrap(),
            Sending { format: Format::Png, quality: 90, url: false, stream: false, partial_images: 0 }
        );
        assert_eq!(sent(r#"{"output_format": "jpeg", "output_compression": 50}"#).unwrap().quality, 50);
        for (body, field) in [
            (r#"{"output_format": "gif"}"#, "output_format"),
            (r#"{"output_compression": 50}"#, "output_compression"),
            (r#"{"output_format": "webp", "output_compression": 50}"#, "output_compression"),
            (r#"{"output_format": "jpeg", "output_compression": 0}"#, "output_compression"),
            (r#"{"response_format": "file"}"#, "response_format"),
            (r#"{"partial_images": 1}"#, "partial_images"),
            (r#"{"partial_images": 4, "stream": true}"#, "partial_images"),
            (r#"{"response_format": "url", "stream": true}"#, "response_format"),
        ] {
            let said = sent(body).unwrap_err();
            assert!(said.starts_with(&format!("`{field}`: ")), "{body}: {said}");
        }
    }
}

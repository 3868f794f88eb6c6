//! The role of a tensor in an adapter file, which its name tells.

/// The role of a tensor in the adapter of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Down,
    Up,
    /// The core between the two (LoCon with a Tucker decomposition).
    Mid,
    Alpha,
    /// Row norms (DoRA).
    Magnitude,
    /// A factor of a Kronecker product (LoKr), whole or as two matrices, perhaps with a core.
    Left,
    LeftA,
    LeftB,
    Right,
    RightA,
    RightB,
    RightCore,
    /// The two low-rank pairs whose products are multiplied element by element (LoHa), perhaps with cores.
    FirstA,
    FirstB,
    FirstCore,
    SecondA,
    SecondB,
    SecondCore,
    /// The change of the weight itself.
    Full,
    /// A change of the bias: on its own, or with the scale of the low-rank pair beside it.
    Bias,
    UpBias,
}

/// Spellings of the matrices, each followed by `weight` or, in PEFT, `<adapter name>.weight`.
const MATRICES: [(&str, Role); 11] = [
    (".lora_A.", Role::Down),
    (".lora_B.", Role::Up),
    (".lora_down.", Role::Down),
    (".lora_up.", Role::Up),
    (".lora_mid.", Role::Mid),
    (".lora.down.", Role::Down),
    (".lora.up.", Role::Up),
    // diffusers' former attention processors.
    ("_lora.down.", Role::Down),
    ("_lora.up.", Role::Up),
    // Text encoders in diffusers' former files.
    (".lora_linear_layer.down.", Role::Down),
    (".lora_linear_layer.up.", Role::Up),
];

/// Suffixes of names, each possibly followed by `.weight` or, in PEFT, `.<adapter name>`.
const ENDS: [(&str, Role); 18] = [
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".lokr_w1", Role::Left),
    (".lokr_w1_a", Role::LeftA),
    (".lokr_w1_b", Role::LeftB),
    (".lokr_w2", Role::Right),
    (".lokr_w2_a", Role::RightA),
    (".lokr_w2_b", Role::RightB),
    (".lokr_t2", Role::RightCore),
    (".hada_w1_a", Role::FirstA),
    (".hada_w1_b", Role::FirstB),
    (".hada_t1", Role::FirstCore),
    (".hada_w2_a", Role::SecondA),
    (".hada_w2_b", Role::SecondB),
    (".hada_t2", Role::SecondCore),
    (".diff", Role::Full),
    (".diff_b", Role::Bias),
    (".alpha", Role::Alpha),
];

/// The layers that XLabs' attention processors change, inside a block of the original code: the image stream (1), the text stream
/// (2), and single blocks.
const XLABS: [(&str, &str); 6] = [
    ("qkv_lora1", "img_attn.qkv"),
    ("qkv_lora2", "txt_attn.qkv"),
    ("proj_lora1", "img_attn.proj"),
    ("proj_lora2", "txt_attn.proj"),
    ("qkv_lora", "linear1.qkv"),
    ("proj_lora", "linear2"),
];

/// The reason why a tensor cannot be used, by a part of its name followed by a dot. The first match counts.
const FOREIGN: [(&str, &str); 13] = [
    ("oft_", "belong to an OFT adapter, which kiln does not read"),
    ("boft_", "belong to a BOFT adapter, which kiln does not read"),
    ("vera_", "belong to a VeRA adapter, which kiln does not read"),
    ("glora", "belong to a GLoRA adapter, which kiln does not read"),
    (".ia3_", "belong to an IA³ adapter, which kiln does not read"),
    (".on_input.", "belong to an IA³ adapter, which kiln does not read"),
    ("conditioner.", "are in the layout of Stable Diffusion XL's original code, which kiln does not read"),
    ("query_norm", "replace norm weights (a control LoRA), which changes of linear layers cannot do"),
    ("key_norm", "replace norm weights (a control LoRA), which changes of linear layers cannot do"),
    (".bias.", "replace biases; kiln applies changes of biases only (`diff_b`)"),
    (".w_norm.", "change norms; kiln applies changes of linear layers and convolutions only"),
    (".b_norm.", "change norms; kiln applies changes of linear layers and convolutions only"),
    ("", "do not belong to a LoRA"),
];

/// Splits a tensor's name into module and role; `None` for names that no adapter has.
pub(super) fn split(name: &str) -> Option<(String, Role)> {
    if let Some((block, rest)) = name.split_once(".processor.")
        && let Some((kind, matrix)) = rest.split_once('.')
        && let Some((_, layer)) = XLABS.iter().find(|(spelling, _)| *spelling == kind)
    {
        let role = match matrix {
            "down.weight" => Role::Down,
            "up.weight" => Role::Up,
            _ => return None,
        };
        return Some((format!("{block}.{layer}"), role));
    }
    let plain = |adapter: &str| {
        adapter.is_empty() || adapter.strip_suffix('.').is_some_and(|name| !name.is_empty() && !name.contains('.'))
    };
    let matrix = MATRICES.iter().find_map(|&(mark, role)| {
        let (module, rest) = name.split_once(mark)?;
        plain(rest.strip_suffix("weight")?).then(|| (module.to_string(), role))
    });
    let bias = MATRICES.iter().filter(|(_, role)| *role == Role::Up).find_map(|&(mark, _)| {
        let (module, rest) = name.split_once(mark)?;
        plain(rest.strip_suffix("bias")?).then(|| (module.to_string(), Role::UpBias))
    });
    matrix.or(bias).or_else(|| {
        ENDS.iter().find_map(|&(mark, role)| {
            let (module, rest) = name.rsplit_once(mark)?;
            let named = rest.strip_prefix('.').map(|rest| rest.strip_suffix(".weight").unwrap_or(rest));
            let fits = rest.is_empty() || role != Role::Alpha && named.is_some_and(|name| !name.contains('.'));
            fits.then(|| (module.to_string(), role))
        })
    })
}

/// The reason why a tensor of this name is no part of an adapter that kiln reads.
pub(super) fn reason(name: &str) -> &'static str {
    let name = format!("{name}.");
    let found = FOREIGN.iter().find(|(mark, _)| name.contains(mark));
    found.map_or(FOREIGN[FOREIGN.len() - 1].1, |(_, reason)| reason)
}

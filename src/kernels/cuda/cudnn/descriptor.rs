//! cuDNN's descriptors: objects with attributes, usable once they are finalized.

use std::ffi::{CStr, c_void};

use super::{functions::Raw, library::Cudnn};

/// The kind of a descriptor; the values of `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Pointwise = 0,
    EngineConfig = 3,
    Heuristics = 4,
    Plan = 5,
    OperationPointwise = 13,
    Graph = 15,
    VariantPack = 16,
    Tensor = 17,
    Matmul = 18,
    OperationMatmul = 19,
    Reduction = 21,
    OperationReduction = 22,
    OperationReshape = 31,
    DeviceProperties = 38,
    OperationSdpaForward = 41,
    OperationSdpaBackward = 43,
}

/// The attributes; the values of `cudnnBackendAttributeName_t`.
#[derive(Clone, Copy, Debug)]
pub enum Attribute {
    PointwiseMode = 0,
    PointwisePrecision = 1,
    HeuristicsMode = 200,
    HeuristicsGraph = 201,
    HeuristicsResults = 202,
    HeuristicsDevice = 204,
    PlanHandle = 400,
    PlanConfig = 401,
    PlanWorkspace = 402,
    PlanDevice = 407,
    PointwiseDescriptor = 750,
    PointwiseX = 751,
    PointwiseB = 752,
    PointwiseY = 753,
    GraphHandle = 800,
    GraphOperations = 801,
    TensorAlignment = 900,
    TensorType = 901,
    TensorShape = 902,
    TensorStrides = 903,
    TensorId = 906,
    TensorIsVirtual = 907,
    TensorIsByValue = 908,
    PackIds = 1000,
    PackAddresses = 1001,
    PackWorkspace = 1003,
    MatmulPrecision = 1500,
    MatmulA = 1520,
    MatmulB = 1521,
    MatmulC = 1522,
    MatmulDescriptor = 1523,
    ReductionOperator = 1600,
    ReductionPrecision = 1601,
    ReductionX = 1610,
    ReductionY = 1611,
    ReductionDescriptor = 1612,
    ReshapeX = 2200,
    ReshapeY = 2201,
    DeviceAsJson = 2702,
    ForwardQ = 2800,
    ForwardK = 2801,
    ForwardV = 2802,
    ForwardO = 2803,
    ForwardLogSums = 2804,
    ForwardScale = 2805,
    BackwardQ = 2851,
    BackwardK = 2852,
    BackwardV = 2853,
    BackwardO = 2854,
    BackwardLogSums = 2855,
    BackwardScale = 2856,
    BackwardDq = 2859,
    BackwardDk = 2860,
    BackwardDv = 2861,
    BackwardDo = 2862,
}

/// The value of an attribute.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Handle(Raw),
    /// A member of `cudnnDataType_t`.
    Type(i32),
    Flag(bool),
    Integers(&'a [i64]),
    Addresses(&'a [Raw]),
    /// A member of `cudnnBackendHeurMode_t`.
    HeuristicsMode(i32),
    /// A member of `cudnnPointwiseMode_t`.
    PointwiseMode(i32),
    Descriptors(&'a [&'a Descriptor]),
    /// A member of `cudnnReduceTensorOp_t`.
    ReductionOperator(i32),
    Text(&'a CStr),
}

/// The values of `cudnnBackendAttributeType_t` with which attributes are read.
const INTEGER: i32 = 3;
const DESCRIPTOR: i32 = 15;

/// A descriptor, destroyed on drop.
pub struct Descriptor {
    library: &'static Cudnn,
    pub(super) raw: Raw,
}

// SAFETY: a finalized descriptor is only read, and an unfinished one never leaves its thread.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// Creates a descriptor with these attributes and finalizes it.
    ///
    /// # Errors
    /// cuDNN does not know the kind or an attribute, or rejects the combination.
    pub fn new(library: &'static Cudnn, kind: Kind, attributes: &[(Attribute, Value)]) -> Result<Self, String> {
        let made = Self::unfinished(library, kind)?;
        for &(attribute, value) in attributes {
            made.set(attribute, value)?;
        }
        // SAFETY: the descriptor was made by this library.
        library.check(&format!("{kind:?}"), unsafe { (library.finalize)(made.raw) })?;
        Ok(made)
    }

    /// Creates a descriptor for cuDNN to fill.
    pub fn unfinished(library: &'static Cudnn, kind: Kind) -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        library.check(&format!("a descriptor {kind:?}"), unsafe { (library.create)(kind as i32, &mut raw) })?;
        Ok(Self { library, raw })
    }

    fn set(&self, attribute: Attribute, value: Value) -> Result<(), String> {
        // The values must live until the call below, where cuDNN copies them.
        let (one, flag, pointers);
        let (kind, count, values): (i32, usize, *const c_void) = match value {
            Value::Handle(handle) => {
                pointers = vec![handle];
                (0, 1, pointers.as_ptr().cast())
            }
            Value::Flag(value) => {
                flag = u8::from(value);
                (2, 1, (&raw const flag).cast())
            }
            Value::Integers(values) => (INTEGER, values.len(), values.as_ptr().cast()),
            Value::Addresses(values) => (6, values.len(), values.as_ptr().cast()),
            Value::Descriptors(values) => {
                pointers = values.iter().map(|descriptor| descriptor.raw).collect();
                (DESCRIPTOR, pointers.len(), pointers.as_ptr().cast())
            }
            Value::Text(text) => (24, text.to_bytes_with_nul().len(), text.as_ptr().cast()),
            Value::Type(member)
            | Value::HeuristicsMode(member)
            | Value::PointwiseMode(member)
            | Value::ReductionOperator(member) => {
                one = member;
                let kind = match value {
                    Value::Type(_) => 1,
                    Value::HeuristicsMode(_) => 8,
                    Value::PointwiseMode(_) => 14,
                    _ => 18,
                };
                (kind, 1, (&raw const one).cast())
            }
        };
        // SAFETY: there are `count` values of this type.
        let status = unsafe { (self.library.set)(self.raw, attribute as i32, kind, count as i64, values) };
        self.library.check(&format!("{attribute:?}"), status)
    }

    /// The value of an integer attribute.
    pub fn integer(&self, attribute: Attribute) -> Result<i64, String> {
        let (mut count, mut value) = (0, 0i64);
        // SAFETY: the function writes the count and at most one integer, as requested.
        let status = unsafe {
            let value = (&raw mut value).cast();
            (self.library.get)(self.raw, attribute as i32, INTEGER, 1, &mut count, value)
        };
        self.library.check(&format!("{attribute:?}"), status)?;
        Ok(value)
    }

    /// The first descriptors of an attribute, at most `most`.
    pub fn descriptors(&self, attribute: Attribute, kind: Kind, most: usize) -> Result<Vec<Self>, String> {
        let mut all = Vec::new();
        for _ in 0..most {
            all.push(Self::unfinished(self.library, kind)?);
        }
        let mut pointers: Vec<Raw> = all.iter().map(|descriptor| descriptor.raw).collect();
        let mut count = 0;
        // SAFETY: the function fills at most that many descriptors, and writes their number.
        let status = unsafe {
            let values = pointers.as_mut_ptr().cast();
            (self.library.get)(self.raw, attribute as i32, DESCRIPTOR, most as i64, &mut count, values)
        };
        self.library.check(&format!("{attribute:?}"), status)?;
        all.truncate(count.max(0) as usize);
        Ok(all)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created by this library and is no longer used.
        unsafe { (self.library.destroy)(self.raw) };
    }
}

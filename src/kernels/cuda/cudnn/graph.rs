//! Graphs of operations on tensors with four axes, and the plans that cuDNN makes of them.

use std::ffi::{CStr, c_void};

use super::{
    descriptor::{Attribute, Descriptor, Kind, Value},
    library::{Cudnn, Handle},
};

/// The dtype of a tensor; the values of `cudnnDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    F32 = 0,
    F16 = 2,
    Bf16 = 9,
}

/// The layout of a tensor in memory; strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    pub shape: [i64; 4],
    pub strides: [i64; 4],
    pub dtype: Type,
}

impl Layout {
    /// A contiguous layout.
    pub fn contiguous(shape: [i64; 4], dtype: Type) -> Self {
        let [_, b, c, d] = shape;
        Self { shape, strides: [b * c * d, c * d, d, 1], dtype }
    }

    /// The same with the last two axes swapped.
    pub fn transposed(self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.shape, self.strides);
        Self { shape: [a, b, d, c], strides: [e, f, h, g], ..self }
    }

    fn bytes(&self) -> usize {
        let size = if self.dtype == Type::F32 { 4 } else { 2 };
        self.shape.iter().product::<i64>() as usize * size
    }
}

/// A tensor of a graph.
#[derive(Clone, Copy)]
pub struct Operand {
    /// Its index among the tensors.
    index: usize,
}

/// The GPU for which plans are made.
pub enum Target<'a> {
    /// A GPU of this machine.
    Handle(&'a Handle),
    /// A GPU that is not present, described in JSON: its plans cannot run.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests make plans that cannot run"))]
    Described(&'a CStr),
}

/// A graph of operations. A plan takes addresses in the order in which [`Self::tensor`] was called.
pub struct Graph {
    library: &'static Cudnn,
    tensors: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    /// Descriptors that those of the operations refer to.
    parts: Vec<Descriptor>,
    ids: Vec<i64>,
    scratch: Vec<(i64, usize)>,
    values: Vec<(i64, f32)>,
}

/// The alignment of the graph's own memory, in bytes.
const ALIGNMENT: usize = 256;

impl Graph {
    pub fn new(library: &'static Cudnn) -> Self {
        let (tensors, operations, parts) = (vec![], vec![], vec![]);
        Self { library, tensors, operations, parts, ids: vec![], scratch: vec![], values: vec![] }
    }

    /// A tensor in memory, at an address that is a multiple of 16.
    pub fn tensor(&mut self, layout: Layout) -> Result<Operand, String> {
        self.ids.push(self.next_id());
        self.add(layout, None)
    }

    /// A tensor in the plan's workspace.
    pub fn scratch(&mut self, layout: Layout) -> Result<Operand, String> {
        self.scratch.push((self.next_id(), layout.bytes()));
        self.add(layout, None)
    }

    /// A constant.
    pub fn value(&mut self, value: f32) -> Result<Operand, String> {
        self.values.push((self.next_id(), value));
        self.add(Layout::contiguous([1; 4], Type::F32), Some(Attribute::TensorIsByValue))
    }

    /// An intermediate tensor, which is never in memory.
    pub fn between(&mut self, layout: Layout) -> Result<Operand, String> {
        self.add(layout, Some(Attribute::TensorIsVirtual))
    }

    fn next_id(&self) -> i64 {
        self.tensors.len() as i64 + 1
    }

    fn add(&mut self, layout: Layout, mark: Option<Attribute>) -> Result<Operand, String> {
        let mut attributes = vec![
            (Attribute::TensorType, Value::Type(layout.dtype as i32)),
            (Attribute::TensorShape, Value::Integers(&layout.shape)),
            (Attribute::TensorStrides, Value::Integers(&layout.strides)),
        ];
        let id = [self.next_id()];
        attributes.push((Attribute::TensorId, Value::Integers(&id)));
        attributes.push((Attribute::TensorAlignment, Value::Integers(&[16])));
        attributes.extend(mark.map(|mark| (mark, Value::Flag(true))));
        self.tensors.push(Descriptor::new(self.library, Kind::Tensor, &attributes)?);
        Ok(Operand { index: self.tensors.len() - 1 })
    }

    /// Adds an operation of this kind on these tensors.
    pub fn operation(&mut self, kind: Kind, operands: &[(Attribute, Operand)]) -> Result<(), String> {
        self.operation_by(kind, operands, None)
    }

    fn operation_by(
        &mut self,
        kind: Kind,
        operands: &[(Attribute, Operand)],
        by: Option<(Attribute, Descriptor)>,
    ) -> Result<(), String> {
        let tensors: Vec<_> = operands.iter().map(|(name, operand)| (*name, [&self.tensors[operand.index]])).collect();
        let mut attributes: Vec<_> = tensors.iter().map(|(name, t)| (*name, Value::Descriptors(t))).collect();
        let how = by.as_ref().map(|(name, descriptor)| (*name, [descriptor]));
        attributes.extend(how.iter().map(|(name, descriptor)| (*name, Value::Descriptors(descriptor))));
        self.operations.push(Descriptor::new(self.library, kind, &attributes)?);
        self.parts.extend(by.map(|(_, descriptor)| descriptor));
        Ok(())
    }

    /// `y = x ∘ b`, with `b` broadcast to `x`, or `y = f(x)`; `mode` is a member of `cudnnPointwiseMode_t`.
    pub fn pointwise(&mut self, mode: i32, x: Operand, b: Option<Operand>, y: Operand) -> Result<(), String> {
        let how = [
            (Attribute::PointwiseMode, Value::PointwiseMode(mode)),
            (Attribute::PointwisePrecision, Value::Type(Type::F32 as i32)),
        ];
        let how = Descriptor::new(self.library, Kind::Pointwise, &how)?;
        let mut operands = vec![(Attribute::PointwiseX, x), (Attribute::PointwiseY, y)];
        operands.extend(b.map(|b| (Attribute::PointwiseB, b)));
        self.operation_by(Kind::OperationPointwise, &operands, Some((Attribute::PointwiseDescriptor, how)))
    }

    /// `c = a·b` over the last two axes.
    pub fn product(&mut self, a: Operand, b: Operand, c: Operand) -> Result<(), String> {
        let how = [(Attribute::MatmulPrecision, Value::Type(Type::F32 as i32))];
        let how = Descriptor::new(self.library, Kind::Matmul, &how)?;
        let operands = [(Attribute::MatmulA, a), (Attribute::MatmulB, b), (Attribute::MatmulC, c)];
        self.operation_by(Kind::OperationMatmul, &operands, Some((Attribute::MatmulDescriptor, how)))
    }

    /// `y` is the sum of `x` over the axes that are 1 in `y`.
    pub fn sum(&mut self, x: Operand, y: Operand) -> Result<(), String> {
        let how = [
            (Attribute::ReductionOperator, Value::ReductionOperator(0)),
            (Attribute::ReductionPrecision, Value::Type(Type::F32 as i32)),
        ];
        let how = Descriptor::new(self.library, Kind::Reduction, &how)?;
        let operands = [(Attribute::ReductionX, x), (Attribute::ReductionY, y)];
        self.operation_by(Kind::OperationReduction, &operands, Some((Attribute::ReductionDescriptor, how)))
    }

    /// `y` is a view of `x`, with its axes as given by the strides of `y`.
    pub fn reshape(&mut self, x: Operand, y: Operand) -> Result<(), String> {
        self.operation(Kind::OperationReshape, &[(Attribute::ReshapeX, x), (Attribute::ReshapeY, y)])
    }

    /// The plan that cuDNN considers the fastest.
    ///
    /// # Errors
    /// It has none for this graph; the error quotes its last attempt.
    pub fn plan(self, target: &Target) -> Result<Plan, String> {
        let library = self.library;
        let device = match target {
            Target::Handle(_) => None,
            Target::Described(text) => {
                let text = [(Attribute::DeviceAsJson, Value::Text(text))];
                Some(Descriptor::new(library, Kind::DeviceProperties, &text)?)
            }
        };
        let device = device.as_ref().map(|device| [device]);
        // A description replaces the handle, and vice versa.
        let on = |by_handle: Option<Attribute>, by_description: Option<Attribute>| match (target, &device) {
            (Target::Handle(handle), _) => by_handle.map(|name| (name, Value::Handle(handle.raw))),
            (_, Some(device)) => by_description.map(|name| (name, Value::Descriptors(device))),
            _ => None,
        };
        let operations: Vec<&Descriptor> = self.operations.iter().collect();
        let mut attributes = vec![(Attribute::GraphOperations, Value::Descriptors(&operations))];
        attributes.extend(on(Some(Attribute::GraphHandle), None));
        let graph = Descriptor::new(library, Kind::Graph, &attributes)?;
        let mut problem = format!("cuDNN {}: none of its engines supports this graph", library.version());
        for mode in [BEST, ANY] {
            let graph = [&graph];
            let mut attributes = vec![
                (Attribute::HeuristicsGraph, Value::Descriptors(&graph)),
                (Attribute::HeuristicsMode, Value::HeuristicsMode(mode)),
            ];
            attributes.extend(on(None, Some(Attribute::HeuristicsDevice)));
            let configs = Descriptor::new(library, Kind::Heuristics, &attributes)
                .and_then(|found| found.descriptors(Attribute::HeuristicsResults, Kind::EngineConfig, ATTEMPTS));
            let configs = configs.unwrap_or_else(|e| {
                problem = e;
                vec![]
            });
            for config in configs {
                let one = [&config];
                let mut attributes = vec![(Attribute::PlanConfig, Value::Descriptors(&one))];
                attributes.extend(on(Some(Attribute::PlanHandle), Some(Attribute::PlanDevice)));
                let made = Descriptor::new(library, Kind::Plan, &attributes)
                    .and_then(|plan| Ok((plan.integer(Attribute::PlanWorkspace)?, plan)));
                match made {
                    Ok((bytes, plan)) => return Ok(Plan::new(self, config, plan, bytes.max(0) as usize)),
                    Err(e) => problem = e,
                }
            }
        }
        Err(problem)
    }
}

/// Members of `cudnnBackendHeurMode_t`: heuristics for the GPU; any engine.
const BEST: i32 = 3;
const ANY: i32 = 2;
/// How many plans of each mode are tried.
const ATTEMPTS: usize = 8;

/// A graph prepared for one GPU.
pub struct Plan {
    plan: Descriptor,
    graph: Graph,
    /// The workspace of the engine alone.
    workspace: usize,
    /// The configuration from which the plan was made.
    _config: Descriptor,
}

impl Plan {
    fn new(graph: Graph, config: Descriptor, plan: Descriptor, workspace: usize) -> Self {
        Self { plan, graph, workspace: workspace.next_multiple_of(ALIGNMENT), _config: config }
    }

    /// The size of the workspace that a run needs, in bytes; it must be aligned to 256.
    pub fn workspace(&self) -> usize {
        let scratch = self.graph.scratch.iter().map(|(_, bytes)| bytes.next_multiple_of(ALIGNMENT));
        self.workspace + scratch.sum::<usize>()
    }

    /// Puts the work on the stream of the handle. The addresses are those of the graph's tensors and of the workspace.
    ///
    /// # Errors
    /// cuDNN refuses.
    ///
    /// # Safety
    /// The addresses are those of memory as large as the layouts require, valid for as long as the work takes, and no other thread
    /// uses the handle.
    pub unsafe fn run(&self, handle: &Handle, tensors: &[u64], workspace: u64) -> Result<(), String> {
        let Graph { library, ids, scratch, values, .. } = &self.graph;
        if tensors.len() != ids.len() {
            return Err(format!("{} addresses for {} tensors", tensors.len(), ids.len()));
        }
        let mut all: Vec<i64> = ids.clone();
        let mut addresses: Vec<*mut c_void> = tensors.iter().map(|&address| address as *mut c_void).collect();
        let mut at = workspace + self.workspace as u64;
        for (id, bytes) in scratch {
            all.push(*id);
            addresses.push(at as *mut c_void);
            at += bytes.next_multiple_of(ALIGNMENT) as u64;
        }
        for (id, value) in values {
            all.push(*id);
            addresses.push((&raw const *value).cast_mut().cast());
        }
        let workspace = [workspace as *mut c_void];
        let pack = [
            (Attribute::PackIds, Value::Integers(&all)),
            (Attribute::PackAddresses, Value::Addresses(&addresses)),
            (Attribute::PackWorkspace, Value::Addresses(&workspace)),
        ];
        let pack = Descriptor::new(library, Kind::VariantPack, &pack)?;
        // SAFETY: the plan and the pack were finalized, and the caller guarantees the addresses.
        library.check("a run", unsafe { (library.execute)(handle.raw, self.plan.raw, pack.raw) })
    }
}

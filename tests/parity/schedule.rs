//! Learning rates and AdamW are those of diffusers and torch.

use burn::tensor::{Device, Tensor, TensorData};
use kiln::training::{OptimizerConfig, ScheduleConfig, ScheduleName, backward::Gradients, optimizer::AdamW};

use crate::support::{Named, goldens};

#[test]
fn learning_rates_match() {
    for golden in goldens("FluxPipeline") {
        let number = |key: &str| golden.section("optim.lr")[key].as_f64().unwrap();
        let whole = |key: &str| number(key) as u64;
        let warmup = whole("num_warmup_steps");
        for (theirs, name, warmup_steps) in [
            ("constant", ScheduleName::Constant, 0),
            ("constant_with_warmup", ScheduleName::Constant, warmup),
            ("linear", ScheduleName::Linear, warmup),
            ("cosine", ScheduleName::Cosine, warmup),
            ("cosine_with_restarts", ScheduleName::CosineWithRestarts, warmup),
            ("polynomial", ScheduleName::Polynomial, warmup),
        ] {
            let schedule = ScheduleConfig { name, warmup_steps, cycles: whole("num_cycles"), power: 1.0 };
            let steps = whole("num_training_steps");
            let rates = (0..steps).map(|step| schedule.learning_rate(number("base_lr"), step, steps) as f32);
            let rates: Vec<f32> = rates.collect();
            golden.check_data(&format!("optim.lr.{theirs}"), TensorData::new(rates, [steps as usize]));
        }
    }
}

#[test]
fn adamw_matches_step_by_step() {
    for golden in goldens("FluxPipeline") {
        let section = golden.section("optim.adamw");
        let number = |key: &str| section[key].as_f64().unwrap();
        let mut optimizer = AdamW::new(OptimizerConfig {
            betas: [0, 1].map(|i| section["betas"][i].as_f64().unwrap()),
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
            ..Default::default()
        });
        let [steps, width] = golden.shape("optim.adamw.grads").try_into().unwrap();
        let mut parameter = Named([("p".to_string(), golden.tensor::<1>("optim.adamw.start").unsqueeze())].into());
        let gradients: Tensor<2> = golden.tensor("optim.adamw.grads");
        let mut after = Vec::new();
        for step in 0..steps {
            let gradient = Gradients::from([("p".to_string(), gradients.clone().narrow(0, step, 1).reshape([width]))]);
            optimizer.step(number("lr"), &mut parameter, gradient);
            after.push(parameter.0["p"].clone());
        }
        assert_eq!(optimizer.steps(), steps as u64);
        assert_eq!(parameter.0["p"].dims(), [1, width]);
        golden.check("optim.adamw.params", Tensor::cat(after, 0));
    }
}

#[test]
fn a_parameter_without_a_gradient_is_left_alone() {
    let mut optimizer = AdamW::new(OptimizerConfig::default());
    let ones = Tensor::<2>::ones([2, 3], &Device::flex());
    let mut parameter = Named([("p".to_string(), ones)].into());
    optimizer.step(0.1, &mut parameter, Gradients::new());
    parameter.0["p"].to_data().assert_eq(&Tensor::<2>::ones([2, 3], &Device::flex()).into_data(), true);
    assert!(optimizer.tensors().is_empty());
}

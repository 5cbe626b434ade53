use super::*;
use crate::architecture::Preset;
use crate::tokenizer::{self, Tokenizer};
use crate::weights::initialise;

const SENTENCES: [&str; 4] = [
    "The lighthouse of Varn was built in 1911 by Elsa Holm.",
    "Red herons nest on the northern cliffs of Oster.",
    "The ferry to Sund leaves at seven each morning.",
    "Old Tomas keeps forty bees in a blue box.",
];

fn job(settings: Settings) -> (Job, Tokenizer) {
    let trained = tokenizer::train(SENTENCES.iter(), 270).unwrap();
    let tokenizer = Tokenizer::from_json(trained.json.as_bytes()).unwrap();
    let architecture = Preset::Tiny.architecture(tokenizer.vocabulary());
    let rows =
        SENTENCES.map(|sentence| Row::whole(tokenizer.begin_id(), &[], &tokenizer.encode(sentence).unwrap(), tokenizer.end_id()));
    let weights = Arc::new(initialise(&architecture, 3));
    let watched = Watched {
        heldout: rows[..1].to_vec(),
        replay: rows[1..3].to_vec(),
        stop: vec![tokenizer.end_id()],
        ..Watched::default()
    };
    (Job { architecture, weights, rows: rows.to_vec(), watched, settings, seed: 9, progress: None }, tokenizer)
}

fn run(job: Job) -> Trained {
    let mut heard = Vec::new();
    let trained = train(job, &Device::Cpu, &mut |event| {
        heard.push(event.clone());
        ControlFlow::Continue(())
    });
    let trained = trained.unwrap();
    assert!(trained.events.ends_with(&heard));
    trained
}

#[test]
fn four_sentences_are_learnt_by_heart() {
    let settings = Settings { epochs: 60, evaluate_every: Some(50), ..Settings::default() };
    let (mut job, tokenizer) = job(settings);
    let architecture = job.architecture.clone();
    let prompt: Vec<u32> = tokenizer.begin_id().into_iter().chain(tokenizer.encode("The lighthouse of Varn").unwrap()).collect();
    job.watched.prompts = vec![prompt.clone()];
    let trained = run(job);
    let events = &trained.events;
    assert!(events[0].loss > 5.0, "a fresh model knows nothing: {}", events[0].loss);
    assert!(trained.loss < 0.1, "{}", trained.loss);
    assert!(trained.finished && trained.steps == events.len());
    let measured: Vec<usize> = events.iter().filter(|event| event.seen.is_some()).map(|event| event.step).collect();
    assert_eq!(
        measured,
        (1..=trained.steps / 50)
            .map(|i| i * 50)
            .chain((!trained.steps.is_multiple_of(50)).then_some(trained.steps))
            .collect::<Vec<_>>()
    );
    let seen = events.last().unwrap().seen.as_ref().unwrap();
    let before = trained.before.as_ref().unwrap();
    for loss in [|seen: &Seen| seen.heldout_loss.unwrap(), |seen: &Seen| seen.replay_loss.unwrap()] {
        assert!(loss(before) > 5.0 && loss(seen) < 0.1);
    }
    assert_ne!(before.heldout_loss, before.replay_loss);
    assert_ne!(before.samples, seen.samples);
    let mut scorer = crate::Scorer::new(&architecture, &trained.weights().unwrap(), &Device::Cpu).unwrap();
    let text = scorer.generate(&[prompt], &crate::Generation::greedy(60, vec![tokenizer.end_id()])).unwrap().remove(0);
    assert_eq!(tokenizer.decode(&text.ids).unwrap(), " was built in 1911 by Elsa Holm.");
    assert_eq!(seen.samples, [text.ids]);
}

#[test]
fn weights_are_the_same_for_any_number_of_threads() {
    let settings = Settings { epochs: 5, batch_size: 3, sequence_length: 48, ..Settings::default() };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let trained = run(job(settings.clone()).0);
            (trained.weights().unwrap(), trained.events)
        })
    };
    let one = with(1);
    for threads in [2, 3, 7] {
        let more = with(threads);
        assert_eq!(one.0, more.0, "{threads} threads");
        assert!(one.1.iter().zip(&more.1).all(|(one, more)| one.loss == more.loss));
    }
}

#[test]
fn a_receiver_that_breaks_ends_the_training_with_what_it_gave() {
    let (job, _) = job(Settings { epochs: 20, ..Settings::default() });
    let started = Weights::of(&job.architecture, &*job.weights).unwrap();
    let mut seen = 0;
    let trained = train(job, &Device::Cpu, &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!((trained.steps, trained.finished), (3, false));
    assert_ne!(trained.weights().unwrap(), started);
}

#[test]
fn a_loss_that_is_no_number_stops_with_advice() {
    let (mut job, _) = job(Settings::default());
    let mut weights = Weights::of(&job.architecture, &*job.weights).unwrap();
    weights.tensors.get_mut("model.norm.weight").unwrap().values[0] = f32::NAN;
    job.weights = Arc::new(weights);
    let error = train(job, &Device::Cpu, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { what: "loss", step: 1, .. }), "{error}");
    assert!(error.to_string().contains("`learning_rate`"));
}

#[test]
fn rows_that_cannot_be_trained_on_are_refused() {
    let refuse = |change: &dyn Fn(&mut Job), needle: &str| {
        let (mut job, _) = job(Settings::default());
        change(&mut job);
        let error = train(job, &Device::Cpu, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    refuse(&|job| job.rows.clear(), "nothing to train on");
    refuse(&|job| job.rows[2].ids[1] = 270, "row 2 holds token 270");
    refuse(&|job| job.settings.batch_size = 0, "`batch_size` is 0");
    refuse(&|job| job.settings.sequence_length = 4096, "`sequence_length` is 4096");
    refuse(
        &|job| {
            let mut weights = Weights::of(&job.architecture, &*job.weights).unwrap();
            weights.tensors.remove("model.norm.weight");
            job.weights = Arc::new(weights);
        },
        "missing: `model.norm.weight`",
    );
}

/// Trains, and is told to stop after some steps, as if killed: what was saved before is all that is left.
fn killed_after(job: Job, steps: usize) {
    let trained = train(job, &Device::Cpu, &mut |event| match event.step == steps {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert_eq!(trained.unwrap().steps, steps);
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bits() {
    let lora = Some(crate::Lora { rank: 4, alpha: 8.0 });
    let epochs = Settings { epochs: 7, batch_size: 1, ..Settings::default() };
    for settings in [
        epochs.clone(),
        Settings { optimizer: crate::Rule::Adafactor, ..epochs.clone() },
        Settings { lora, learning_rate: 1e-2, ..epochs },
    ] {
        let (job, _) = job(settings.clone());
        let whole = run(job.clone());
        let holder = tempfile::tempdir().unwrap();
        let folder = holder.path().join("progress");
        let progress = Some(crate::Progress { folder: folder.clone(), every: crate::Every::Steps(3) });
        killed_after(Job { progress: progress.clone(), ..job.clone() }, 5);
        let saved = || {
            let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_dir()).map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(saved(), ["000000000003"]);
        // Another training's folder is none of this one's.
        let other = run(Job { progress: progress.clone(), seed: 10, ..job.clone() });
        assert_eq!(other.events.len(), whole.events.len());
        killed_after(Job { progress: progress.clone(), ..job.clone() }, 5);
        let resumed = run(Job { progress, ..job });
        assert_eq!(resumed.weights().unwrap(), whole.weights().unwrap(), "{settings:?}");
        assert_eq!(resumed.adapter().unwrap(), whole.adapter().unwrap());
        let figures = |trained: &Trained| -> Vec<_> {
            let of = |event: &Event| (event.step, event.tokens, event.loss, event.gradient_norm, event.seen.clone());
            trained.events.iter().map(of).collect()
        };
        assert_eq!(figures(&resumed), figures(&whole));
    }
}

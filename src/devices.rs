//! `doctor --device`

use std::{
    io::Write,
    process::{ExitCode, Stdio},
};

use ingrain_engine::failure::Failure;
use ingrain_student::{
    Device,
    measure::{Compared, Finding, Rate, SHAPES, Shape, compare, measure, try_out},
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::{
    End, STAGE_FAILED,
    call::DoctorCall,
    progress::{printable, tell},
};

/// The parts that aren't a shape.
const PRODUCT: &str = "product";
const NUMBERS: &str = "numbers";

/// Says what a device is, whether it computes, and with `--full` what and how fast. Each part has a process of its own, so
/// that a driver's abort ends that part alone.
pub(crate) async fn examine(call: &DoctorCall, name: &str) -> Result<(), End> {
    let device = ingrain_operators::train::device(name)?;
    if let Some(part) = call.part.clone() {
        let seconds = call.seconds;
        let done = tokio::task::spawn_blocking(move || find_out(&part, &device, seconds)).await;
        return done.map_err(|error| Failure::bug(error.to_string()))?.map_err(End::from);
    }
    let mut shapes: Vec<String> = call.shapes.clone();
    if shapes.is_empty() {
        shapes = Shape::usual(&device).iter().map(|name| (*name).to_owned()).collect();
    }
    if let Some(unknown) = shapes.iter().find(|name| !SHAPES.contains(&name.as_str())) {
        return Err(Failure::data(format!("no shape is called `{unknown}`"))
            .hint(format!("there are `{}`", SHAPES.join("`, `")))
            .into());
    }
    if !call.json {
        let cuda = match Device::cuda_count() {
            Ok(count) => format!("{count} device(s)"),
            Err(missing) => format!("none: {missing}"),
        };
        say(&format!("CUDA       {cuda}"))?;
    }
    let mut parts = vec![PRODUCT.to_owned()];
    if call.full {
        parts.push(NUMBERS.to_owned());
        parts.extend(shapes);
    }
    let mut well = true;
    for part in parts {
        let (passed, compared) = part_apart(&part, &device, call).await?;
        well &= passed;
        if !call.json && part == NUMBERS {
            summary(&compared)?;
        }
    }
    if well { Ok(()) } else { Err(End::Told(ExitCode::from(STAGE_FAILED))) }
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{}", printable(line))?)
}

/// Writes what a part finds, an object a line.
fn find_out(part: &str, device: &Device, seconds: f64) -> Result<(), Failure> {
    let failed = |said: String| Failure::external(format!("`{device}`: {said}"));
    let mut unsaid = None;
    let mut emit = |finding: Finding| {
        let line = serde_json::to_string(&finding).map_err(|error| Failure::bug(error.to_string()));
        if let Err(failure) = line.and_then(|line| say(&line)) {
            unsaid = Some(failure);
        }
    };
    match part {
        PRODUCT => {
            emit(Finding::Device(device.describe().map_err(|error| failed(error.to_string()))?));
            emit(try_out(device).map_err(failed)?);
        }
        NUMBERS => compare(device, &mut emit).map_err(failed)?,
        name => {
            let shape = Shape::named(name, device).ok_or_else(|| Failure::data(format!("no shape is called `{name}`")))?;
            measure(device, &shape, seconds, &mut emit).map_err(|error| failed(error.to_string()))?;
        }
    }
    unsaid.map_or(Ok(()), Err)
}

/// Finds out a part in a child process, and prints it; gives whether all went well, and what was compared.
async fn part_apart(part: &str, device: &Device, call: &DoctorCall) -> Result<(bool, Vec<Compared>), Failure> {
    let (name, seconds) = (device.to_string(), call.seconds.to_string());
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["doctor", "--device", &name, "--part", part, "--seconds", &seconds])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Failure::bug("a child process without pipes"));
    };
    let last_words = tokio::spawn(async move {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    });
    let (mut lines, mut compared) = (BufReader::new(stdout).lines(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        let finding: Finding =
            serde_json::from_str(&line).map_err(|error| Failure::bug(format!("`{part}` says `{line}`: {error}")))?;
        if call.json {
            say(&line)?;
        } else {
            print(&finding)?;
        }
        if let Finding::Compared(found) = finding {
            compared.push(found);
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        let said = last_words.await.unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        tell(&format!("error: the part `{part}` ended with {status} on `{device}`\n{tail}"), None);
    }
    Ok((status.success() && compared.iter().all(|compared| compared.passes), compared))
}

/// A finding as a line of the table; what is compared is summed up when it is complete.
fn print(finding: &Finding) -> Result<(), Failure> {
    match finding {
        Finding::Device(found) => {
            let threads = found.threads.map(|threads| format!(", {threads} threads")).unwrap_or_default();
            say(&format!("{:10} {}{threads}, {} MiB, {} free", found.device, found.name, found.memory >> 20, found.free >> 20))
        }
        Finding::Right { seconds } => say(&format!("product    right, {seconds:.2} s with the start")),
        Finding::Compared(_) => Ok(()),
        Finding::Shape(shape) => say(&format!(
            "\n{}: {} layers of {}, feed-forward {}, {} heads on {}, vocabulary {}",
            shape.name, shape.layers, shape.hidden, shape.feed_forward, shape.heads, shape.key_value_heads, shape.vocabulary
        )),
        Finding::Rate(Rate { what, value, unit, range, detail, dtype, .. }) => {
            let range = range.map(|[least, most]| format!("{} to {}", figure(least), figure(most))).unwrap_or_default();
            let dtype = dtype.as_ref().map(|dtype| format!("{dtype}, ")).unwrap_or_default();
            say(&format!("  {what:16} {:>10} {unit:9} {range:22} {dtype}{detail}", figure(*value)))
        }
        Finding::Skipped { what, reason, .. } => say(&format!("  {what:16} skipped: {reason}")),
    }
}

/// Three digits or more.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The largest error of each quantity.
fn summary(compared: &[Compared]) -> Result<(), Failure> {
    let mut quantities: Vec<&str> = compared.iter().map(|compared| compared.quantity.as_str()).collect();
    quantities.dedup();
    for quantity in quantities {
        let of = compared.iter().filter(|compared| compared.quantity == quantity);
        let Some(worst) = of.max_by(|one, other| one.error.total_cmp(&other.error)) else { continue };
        let tensor = worst.tensor.as_ref().map(|tensor| format!(", largest in `{tensor}`")).unwrap_or_default();
        let word = if worst.passes { "passes" } else { "FAILS" };
        say(&format!("{quantity:18} {word:7} relative error {:.1e} of at most {:.0e}{tensor}", worst.error, worst.limit))?;
    }
    Ok(())
}

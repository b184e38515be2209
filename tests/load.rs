//! Load: many starts at once, many guests, a huge definition. Nothing is lost, and a start takes no longer for it.
//!
//! Needs root and the packages that `tests/install-programs` installs. The soak is a command of its own: `tests/soak`.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[path = "common/sandbox.rs"]
mod sandbox;

use sandbox::{NAME, PLANS, Sandbox, UUID, WIDTH, run, shim_words};

fn uuid(number: u32) -> String {
    format!("6f0c7d2e-6b0a-4a4e-9d55-{number:012x}")
}

/// Prepares guest `number`; how long it took.
fn prepare(sandbox: &Sandbox, number: u32) -> Duration {
    let name = format!("vm{number}");
    let xml = Sandbox::domain().replace(UUID, &uuid(number)).replace(NAME, &name);
    let begun = Instant::now();
    let said = run(sandbox.command(&["/usr/bin/barfit", "hook", &name, "prepare", "begin", "-"]), xml);
    assert_eq!(said.code(), Some(0), "{number}: {said:?}");
    begun.elapsed()
}

fn release(sandbox: &Sandbox, number: u32) {
    let xml = Sandbox::domain().replace(UUID, &uuid(number));
    let said = run(sandbox.command(&["/usr/bin/barfit", "hook", "vm", "release", "begin", "-"]), xml);
    assert_eq!(said.code(), Some(0), "{number}: {said:?}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_thousand_starts_sixty_four_at_a_time() {
    let sandbox = Sandbox::new();
    let first: Vec<Duration> = (0..100).map(|number| prepare(&sandbox, number)).collect();
    let next = AtomicU32::new(100);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= 1000 {
                        break;
                    }
                    prepare(&sandbox, number);
                }
            });
        }
    });
    // Each has its own plan and record, whole, and its emulator follows it.
    for number in 0..1000 {
        let plan = sandbox
            .json(&format!("{PLANS}/{}.json", uuid(number)))
            .unwrap_or_else(|| panic!("{number}: no plan"));
        assert_eq!(plan["uuid"], uuid(number));
        assert_eq!(plan["name"], format!("vm{number}"));
        let start = sandbox.json(&format!("run/barfit/starts/{}.json", uuid(number))).expect("a record");
        assert_eq!(start["name"], format!("vm{number}"));
        if number % 50 == 0 {
            let uuid = uuid(number);
            let words = shim_words().map(|word| if word == UUID { uuid.as_str() } else { word });
            assert!(run(sandbox.command(&words), "").stdout.contains(WIDTH), "{number}");
        }
    }
    // With a thousand plans there the next hundred take as long as the first. Side by side in one run, and by a ratio
    // that a busy machine keeps: it is for what grows with the number of guests.
    let last: Vec<Duration> = (1000..1100).map(|number| prepare(&sandbox, number)).collect();
    let (first, last) = (median(first), median(last));
    println!("a prepare: {first:?} with no plan there, {last:?} with a thousand");
    assert!(last < first * 2, "{first:?}, then {last:?}");
    let status = run(sandbox.command(&["/usr/bin/barfit", "status"]), "");
    assert_eq!(status.stdout.lines().filter(|line| line.contains(" ago: ")).count(), 1100);
    for number in 0..1100 {
        release(&sandbox, number);
    }
    let left = sandbox.left();
    let (of_guests, others): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|file| file.contains("starts/") || file.contains("applied/"));
    assert_eq!(
        others,
        ["var/cache/barfit/firmware.json"],
        "what is known of firmware files, once for all guests"
    );
    assert_eq!(of_guests.len(), 2200, "a record and what it was started with, for each guest");
}

/// Thousands of devices. The time is that of the whole hook, which gives up after five seconds.
#[test]
fn a_definition_of_five_megabytes() {
    let sandbox = Sandbox::new();
    let mut devices = String::new();
    let mut count = 0;
    while devices.len() < 5 << 20 {
        let _ = writeln!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/{count}.qcow2'/>\
             <target dev='sd{count}' bus='scsi'/><address type='drive' controller='{}' bus='0' target='0' unit='{}'/></disk>",
            count / 256,
            count % 256
        );
        count += 1;
    }
    let xml = Sandbox::domain()
        .replace("<memballoon model='virtio'>", &format!("{devices}<memballoon model='virtio'>"));
    let begun = Instant::now();
    let words = ["/bin/sh", "-c", "ulimit -v 500000; exec /usr/bin/barfit hook vm prepare begin -"];
    let said = run(sandbox.command(&words), &xml);
    assert_eq!(said.code(), Some(0), "{said:?}");
    println!("{count} devices, {} bytes: {:?}", xml.len(), begun.elapsed());
    assert!(sandbox.start().stdout.contains(WIDTH), "{:?}", sandbox.messages());
}

/// One domain that libvirt does not take, among others: those are changed, it is as it was, and it is said which.
#[test]
fn one_domain_of_several_that_libvirt_refuses() {
    let sandbox = Sandbox::new();
    let path = |number| format!("domains/{}.xml", uuid(number));
    let xml = |number| Sandbox::domain().replace(UUID, &uuid(number)).replace(NAME, &format!("vm{number}"));
    for number in 0..5 {
        sandbox.write(&path(number), xml(number));
    }
    sandbox.write(&format!("domains/{}.refused", uuid(2)), "");
    let said = run(sandbox.command(&["/usr/bin/barfit", "apply", "--yes", "--all"]), "");
    assert_eq!(said.code(), Some(2), "{said:?}");
    let read = |number| std::fs::read_to_string(sandbox.path(&path(number))).expect("a definition");
    for number in 0..5 {
        let changed = read(number).contains("<maxphysaddr mode='emulate' bits='43'/>");
        assert_eq!(changed, number != 2, "{number}: {said:?}");
        assert_eq!(said.stdout.contains(&format!("vm{number}: changed")), number != 2, "{said:?}");
        let backup = sandbox.path(&format!("var/lib/barfit/backup/{}.xml", uuid(number)));
        assert_eq!(backup.exists(), number != 2, "{number}");
    }
    assert_eq!(read(2), xml(2));
    assert_eq!(
        said.stderr.lines().collect::<Vec<_>>().len(),
        1,
        "the others are not complained about: {}",
        said.stderr
    );
    assert!(
        said.stderr.contains("vm2") && said.stderr.contains("this libvirt does not take it"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("its definition is as before"), "{}", said.stderr);
    // And all the way back.
    let said = run(sandbox.command(&["/usr/bin/barfit", "apply", "--undo", "--yes", "--all"]), "");
    assert_eq!(said.code(), Some(0), "{said:?}");
    for number in 0..5 {
        assert_eq!(read(number), xml(number), "{number}");
    }
}

/// What a machine holds below its folders that barfit writes to, and memory that the kernel keeps for files there.
#[test]
#[ignore = "run by tests/soak, which says how often"]
fn soak() {
    let runs: usize =
        std::env::var("BARFIT_SOAK_RUNS").expect("tests/soak sets it").parse().expect("a number");
    let sandbox = Sandbox::new();
    let domain = Sandbox::domain();
    let operations =
        ["prepare", "started", "release", "restore", "prepare", "release", "reconnect", "migrate"];
    let round = || {
        for operation in operations {
            let said = sandbox.hook(operation, &domain);
            assert_eq!((said.code(), said.stdout.as_str()), (Some(0), ""), "{operation}: {said:?}");
        }
        // The shim is as new as this machine: in the first round its time may be set once more.
        sandbox.messages().iter().filter(|message| !message.starts_with("QEMU is newer")).count()
    };
    let messages = round();
    let left = sandbox.left();
    let mut times = Vec::new();
    for _ in 0..runs.div_ceil(operations.len()) {
        let begun = Instant::now();
        assert_eq!(round(), messages, "a message is lost");
        times.push(begun.elapsed());
    }
    assert_eq!(sandbox.left(), left);
    let tenth = (times.len() / 10).max(1);
    let (first, last) = (median(times[..tenth].to_vec()), median(times[times.len() - tenth..].to_vec()));
    println!(
        "{} runs; {} files left, as after the first round; a round of 8 took {first:?} at first, {last:?} at last",
        times.len() * 8,
        left.len()
    );
    assert!(last < first * 2, "{first:?}, then {last:?}");
}

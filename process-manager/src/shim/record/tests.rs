use blackhole_bus_schema::process::{ExitResult, ExitStatus};
use proptest::prelude::*;

use super::*;

fn request(dir: &Path, spec: Vec<u8>) -> SpawnRequest {
    SpawnRequest {
        instance: "web.1".parse().unwrap(),
        generation: Generation(7),
        instance_dir: dir.to_owned(),
        socket: dir.join("s"),
        command: vec!["true".into()],
        env: Default::default(),
        working_dir: None,
        user: None,
        group: None,
        nofile: None,
        success_codes: vec![0],
        stop: Default::default(),
        logs: Default::default(),
        grant: Some(LimitGrant {
            oom_score_adj: Some(3),
            ..Default::default()
        }),
        spec,
        permit: None,
        settings: Default::default(),
        watchdog_us: None,
    }
}

fn exit() -> ExitRecord {
    ExitRecord {
        generation: Generation(7),
        pid: 12,
        status: ExitStatus::Exited { code: 3 },
        result: ExitResult::ExitCode,
        started_at: 1,
        ended_at: 2,
        killed_leftovers: 0,
    }
}

fn started() -> Started {
    Started {
        pid: 12,
        start_ticks: 99,
        started_at: 1,
        shim_pid: 11,
        steps: Vec::new(),
        warnings: vec!["w".into()],
    }
}

#[test]
fn a_record_grows_with_the_life_of_its_instance() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    assert_eq!(read_record(dir).unwrap(), None);
    let mut writer = Writer::begin(&request(dir, vec![1, 2]), "boot", 11);
    assert_eq!(read_record(dir).unwrap(), None);
    writer.started(&started()).unwrap();
    let record = read_record(dir).unwrap().unwrap();
    assert_eq!((record.generation, record.shim_pid), (Generation(7), 11));
    assert_eq!(
        (record.spec.as_slice(), record.boot_id.as_str()),
        (&[1_u8, 2][..], "boot")
    );
    assert_eq!(record.grant.unwrap().oom_score_adj, Some(3));
    assert_eq!((record.started, record.exit), (Some(started()), None));
    writer.exited(&exit()).unwrap();
    let record = read_record(dir).unwrap().unwrap();
    assert_eq!(
        (record.started, record.exit),
        (Some(started()), Some(exit()))
    );
    let mut writer = Writer::begin(&request(dir, vec![]), "boot", 12);
    writer.started(&started()).unwrap();
    assert_eq!(
        read_record(dir).unwrap().unwrap().exit,
        None,
        "the next spawn begins anew"
    );
}

#[test]
fn a_long_record_leaves_nothing_behind_a_short_one() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut files = std::collections::BTreeSet::new();
    for (generation, size) in [
        (1, 9 * BLOCK),
        (2, 3 * BLOCK),
        (3, 10),
        (4, 2 * BLOCK),
        (5, 0),
    ] {
        let mut now = request(dir, vec![9; size]);
        now.generation = Generation(generation);
        let mut writer = Writer::begin(&now, "boot", 11);
        writer.started(&started()).unwrap();
        let record = read_record(dir).unwrap().unwrap();
        assert_eq!(record.generation, Generation(generation));
        assert_eq!((record.spec.len(), record.exit), (size, None));
        writer.exited(&exit()).unwrap();
        assert_eq!(read_record(dir).unwrap().unwrap().exit, Some(exit()));
        let meta = std::fs::metadata(dir.join(NAME)).unwrap();
        let needed = writer.length.next_multiple_of(BLOCK as u64);
        assert!(meta.len() <= needed, "{} of {needed}", meta.len());
        files.insert(std::os::unix::fs::MetadataExt::ino(&meta));
    }
    let (one, other) = (dir.join("one"), dir.join("other"));
    std::fs::write(&one, "").unwrap();
    std::fs::write(&other, "").unwrap();
    if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
        assert_eq!(files.len(), 2, "two files in turn");
    }
}

#[test]
fn a_record_cut_anywhere_is_read_as_far_as_it_goes() {
    for size in [10, BLOCK - 200, 2 * BLOCK] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let mut writer = Writer::begin(&request(dir, vec![9; size]), "boot", 11);
        writer.started(&started()).unwrap();
        writer.exited(&exit()).unwrap();
        let whole = std::fs::read(dir.join(NAME)).unwrap();
        let frames = usize::try_from(writer.length).unwrap();
        for cut in 0..frames {
            if let Some(record) = parse(whole[..cut].to_vec()).unwrap() {
                assert!(record.exit.is_none());
                assert_eq!(record.spec.len(), size);
            }
        }
        assert_eq!(parse(whole).unwrap().unwrap().exit, Some(exit()));
    }
}

#[test]
fn the_end_fits_into_blocks_that_the_first_frame_took() {
    for size in (0..2 * BLOCK).step_by(61) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let mut writer = Writer::begin(&request(dir, vec![9; size]), "boot", 11);
        writer.started(&started()).unwrap();
        let first = writer.length.div_ceil(BLOCK as u64);
        writer.exited(&exit()).unwrap();
        assert_eq!(writer.length.div_ceil(BLOCK as u64), first);
        assert_eq!(read_record(dir).unwrap().unwrap().exit, Some(exit()));
    }
}

#[test]
fn what_could_not_be_written_is_written_with_the_next_frame() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir(dir.join(NEW)).unwrap();
    let mut writer = Writer::begin(&request(dir, vec![5]), "boot", 11);
    assert!(writer.started(&started()).is_err());
    std::fs::remove_dir(dir.join(NEW)).unwrap();
    writer.exited(&exit()).unwrap();
    let record = read_record(dir).unwrap().unwrap();
    assert_eq!(
        (record.started, record.exit),
        (Some(started()), Some(exit()))
    );
    // The end of the spawn before is not taken for that of one which could not write.
    std::fs::create_dir(dir.join(NEW)).unwrap();
    let mut writer = Writer::begin(&request(dir, vec![5]), "boot", 11);
    assert!(writer.started(&started()).is_err() && !dir.join(NAME).exists());
    std::fs::remove_dir(dir.join(NEW)).unwrap();
    // And a disk that fills up in between.
    let mut writer = Writer::begin(&request(dir, vec![5]), "boot", 11);
    writer.started(&started()).unwrap();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let good = writer.file.replace(full);
    assert!(writer.exited(&exit()).is_err());
    writer.file = good;
    writer.exited(&exit()).unwrap();
    let record = read_record(dir).unwrap().unwrap();
    assert_eq!(
        (record.started, record.exit),
        (Some(started()), Some(exit()))
    );
}

#[test]
fn restarts_by_permit_are_the_latest_spawn_and_keep_the_end_before() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let spec = vec![7; 3000];
    let mut now = request(dir, spec.clone());
    let mut writer = Writer::begin(&now, "boot", 11);
    writer.started(&started()).unwrap();
    for restarts in 1..60 {
        let before = ExitRecord {
            generation: now.generation,
            ..exit()
        };
        now.generation = now.generation.next();
        let next = Started {
            pid: 100 + restarts,
            ..started()
        };
        writer
            .restarted(&before, &now, "boot", restarts, Ok(&next))
            .unwrap();
        let record = read_record(dir).unwrap().unwrap();
        assert_eq!(record.generation, now.generation);
        assert_eq!(record.previous_exit, Some(before));
        assert_eq!((record.restarts, record.exit), (restarts, None));
        assert_eq!(record.started, Some(next));
        assert_eq!(record.spec, spec);
    }
    let size = std::fs::metadata(dir.join(NAME)).unwrap().len();
    assert!(size < 2 * MOST_APPENDED, "{size} bytes");
    writer.exited(&exit()).unwrap();
    assert_eq!(read_record(dir).unwrap().unwrap().exit, Some(exit()));
}

#[test]
fn another_file_is_damaged_and_says_so() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join(NAME), b"hello, this is no record").unwrap();
    let error = read_record(temp.path()).unwrap_err().to_string();
    assert!(
        error.contains("record") && error.contains("damaged"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_bytes_crash_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(bytes);
    }
}

//! `docs/survival.md` names tests for its promises: each of them exists, and each
//! promise has one or says why not.

use std::fs;

use blackhole_tests::binaries::repository;

const PLACES: [(&str, &str); 3] = [
    ("pm/", "process-manager/tests/"),
    ("e2e/", "tests/tests/"),
    ("core/", "supervisor/src/core/tests/"),
];

fn document() -> String {
    fs::read_to_string(repository().join("docs/survival.md")).expect("the document")
}

/// The tests that a text names, as file and function.
fn named(text: &str) -> Vec<(String, String)> {
    let marked = text.split('`').skip(1).step_by(2);
    let tests = marked.filter_map(|word| word.split_once(".rs::"));
    tests
        .map(|(file, test)| {
            let place = PLACES.iter().find(|(short, _)| file.starts_with(short));
            let file = match place {
                Some((short, long)) => file.replacen(short, long, 1),
                None => file.to_owned(),
            };
            (format!("{file}.rs"), test.to_owned())
        })
        .collect()
}

#[test]
fn each_test_that_is_named_exists() {
    let tests = named(&document());
    assert!(tests.len() > 100, "{}", tests.len());
    let missing: Vec<_> = tests
        .iter()
        .filter(|(file, test)| {
            let text = fs::read_to_string(repository().join(file)).unwrap_or_default();
            let head = format!("fn {test}(");
            // Right above it stand its attributes.
            let before = text
                .split(&head)
                .next()
                .filter(|before| before.len() < text.len());
            !before.is_some_and(|before| {
                let attributes = before.rsplit("\n\n").next().unwrap_or_default();
                attributes.contains("#[test]") || attributes.contains("#[tokio::test")
            })
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn each_promise_has_a_test_or_says_why_not() {
    let text = document();
    let promises: Vec<&str> = text.split("\n- ").skip(1).collect();
    assert!(promises.len() > 40, "{}", promises.len());
    for promise in promises {
        assert!(
            !named(promise).is_empty() || promise.contains("Not tested: "),
            "{promise}"
        );
    }
}

//! `operator replay` as its users see it: the example of its documentation, and what is said about
//! lines that cannot be understood.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use ebpf_scaler_operator::replay::run;

/// What is printed, what is said, and whether all lines were understood.
fn replay(input: &str) -> (String, String, bool) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let result = run(input.as_bytes(), &mut output, &mut errors);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output), text(errors), result.is_ok())
}

/// A line with one thing replaced.
fn scenario(from: &str, to: &str) -> String {
    let good = r#"{"name":"x","spec":{"minReplicas":1,"maxReplicas":9,"metrics":[{"type":"External","target":{"type":"Value","value":"30"}}],"behavior":{"scaleUp":{"policies":[{"type":"Pods","value":2,"periodSeconds":15}]}}},"initialReplicas":2,"controller":{"tolerance":0.1},"steps":[{"t":0,"metrics":[[60]]},{"t":15,"metrics":[[60]],"readyPods":1}]}"#;
    assert!(good.contains(from), "{from}");
    good.replacen(from, to, 1)
}

#[test]
fn the_example_of_the_documentation_gives_what_it_says() {
    let page = include_str!("../../docs/replay.md");
    let mut blocks = page.split("```json\n").skip(1);
    let mut block = || blocks.next().unwrap().split("```").next().unwrap();
    let (output, errors, understood) = replay(block());
    assert_eq!(output, block());
    assert_eq!(errors, "");
    assert!(understood);
}

#[test]
fn a_wrong_line_names_its_field_and_the_others_go_on() {
    let good = scenario("x", "x");
    let input = format!(
        "{good}\n\n{}\n{good}\n",
        scenario(r#""t":15"#, r#""t":"soon""#)
    );
    let (output, errors, understood) = replay(&input);
    assert_eq!(
        output,
        "{\"name\":\"x\",\"replicas\":[4,4],\"reasons\":[\"MetricAboveTarget\",\"ScaleDownStabilized\"]}\n"
            .repeat(2)
    );
    assert_eq!(
        errors,
        "line 3: steps[1].t: expected a number that is not negative, found \"soon\"\n"
    );
    assert!(!understood);
}

#[test]
fn every_field_is_checked() {
    for (from, to, wanted) in [
        (r#""name":"x","#, "", "name: missing"),
        (
            r#""maxReplicas":9"#,
            r#""maxReplicas":0"#,
            "spec.maxReplicas: expected a whole number from 1",
        ),
        (
            r#""minReplicas":1"#,
            r#""minReplicas":10"#,
            "spec.maxReplicas: 9 is less than minReplicas, 10",
        ),
        (
            r#""minReplicas":1"#,
            r#""minReplicas":1.5"#,
            "spec.minReplicas: expected a whole number from 0",
        ),
        (
            r#""type":"External""#,
            r#""type":"Pods""#,
            "spec.metrics[0].type: expected External, found \"Pods\"",
        ),
        (
            r#""type":"Value""#,
            r#""type":"Utilization""#,
            "spec.metrics[0].target.type: expected Value or AverageValue",
        ),
        (
            r#""30""#,
            r#""thirty""#,
            "spec.metrics[0].target.value: \"thirty\" is not a quantity",
        ),
        (
            r#""30""#,
            "0",
            "spec.metrics[0].target.value: must be above zero",
        ),
        (
            r#"{"type":"Pods","value":2,"periodSeconds":15}"#,
            "",
            "spec.behavior.scaleUp.policies: at least one",
        ),
        (
            r#""periodSeconds":15"#,
            r#""periodSeconds":0"#,
            "spec.behavior.scaleUp.policies[0].periodSeconds: expected",
        ),
        (
            r#""initialReplicas":2"#,
            r#""initialReplicas":-2"#,
            "initialReplicas: expected a whole number from 0",
        ),
        (
            r#""tolerance":0.1"#,
            r#""tolerance":-0.1"#,
            "controller.tolerance: expected a number",
        ),
        (r#""t":15"#, r#""t":-15"#, "steps[1].t: expected a number"),
        (
            r#""t":0"#,
            r#""t":16"#,
            "steps[1]: t is before the last step's",
        ),
        (
            "[[60]]",
            "[]",
            "steps[0].metrics: 0 metrics, but the spec has 1",
        ),
        (
            "[[60]]",
            "[[true]]",
            "steps[0].metrics[0][0]: expected a quantity",
        ),
        (
            r#""readyPods":1"#,
            r#""readyPods":"1""#,
            "steps[1].readyPods: expected a whole number",
        ),
        ("{", "[", "not JSON"),
    ] {
        let (output, errors, understood) = replay(&scenario(from, to));
        assert_eq!(output, "", "{to}");
        assert!(errors.starts_with(&format!("line 1: {wanted}")), "{errors}");
        assert!(!understood, "{to}");
    }
}

#[test]
fn a_field_that_does_not_exist_is_named_and_no_error() {
    let (output, errors, understood) = replay(&scenario("readyPods", "readyPod"));
    assert!(output.starts_with("{\"name\":\"x\""), "{output}");
    assert_eq!(
        errors,
        "line 1: steps[1].readyPod: ignored, no such field\n"
    );
    assert!(understood);
}

use crate::fixtures::agent_status;

#[test]
fn it_is_read_by_people() {
    let text = agent_status().to_string();
    for words in [
        "warning: record writes suspended",
        "node-1  GONE",
        "last refused: 10.0.0.8 at 1970-01-01 00:00:00Z: no\\u{1b}[2J key",
        "2 (100 B)",
        "SERVICE sentiment  id 0, v13 in the shadow of v12",
        "SATURATED for 3 s: lower sample or raise concurrency",
        "5 of 10 wait",
        "queue_full 4",
        "control      10.0.0.9:8001, DOWN (connect): noise is not known",
        "noise        of 8: differs 25 %, of which 25 % the old version differs from itself",
        "noise        no answer: connect 3",
        "traffic      2 of 9 repeated requests were not answered as before",
        "line end (request) of 10.0.0.7:4000",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line.trim_end(), line);
    }
}

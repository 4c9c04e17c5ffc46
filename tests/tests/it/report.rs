//! What a person, or a program, reads in the end.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Answers, Request, Server, Site, binary, on, pattern, privileged};

fn report(site: &Site, output: &str) -> Result<String> {
    let (program, records) = (binary("modelmirror")?, site.home.record_dir());
    let (program, records) = (program.to_string_lossy(), records.to_string_lossy());
    let arguments = ["report", "--records", &*records, "--output", output];
    site.net.shadow.output(&program, &arguments)
}

#[test]
fn its_numbers_are_the_client_s() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let other = Answers {
            other_label_in: Some(4),
            ..Answers::of("v13")
        };
        site.shadow = None;
        let model = Server::start(&site.net.shadow, "127.0.0.1:8000".parse()?, &other)?;
        site.shadow = Some(model);
        let sent = site.client.load(5, 20, |connection, index| {
            Request::post("/label", &pattern(300, (connection * 100 + index) as u64))
        })?;
        site.account(&sent)?;
        let production = site.production.answers();
        let differs = |body: &[u8]| production.label(body) != other.label(body);
        let different = sent
            .iter()
            .filter(|sent| differs(&sent.request.body))
            .count();
        ensure!(different > 0, "every label is the same");

        let text = report(site, "json")?;
        let parsed: Value = serde_json::from_str(&text).context(text)?;
        let service = &parsed["services"][0];
        let expected = [
            ("/service", "digits".into()),
            ("/compared", sent.len().into()),
            ("/verdicts/different", different.into()),
            ("/verdicts/error", 0.into()),
            ("/fidelity/ratio", 1.0.into()),
            ("/production_versions/0", "v12".into()),
            ("/shadow_versions/0", "v13".into()),
            ("/production_status/2xx", sent.len().into()),
            ("/shadow_status/2xx", sent.len().into()),
        ];
        for (pointer, value) in expected {
            ensure!(
                service.pointer(pointer) == Some(&value),
                "{pointer}: {service:#}"
            );
        }
        let times = &service["latency"];
        for leg in ["production", "shadow"] {
            let median = times[leg]["first_byte_ms"]["p50"].as_f64();
            ensure!(
                median.is_some_and(|ms| ms > 0.0 && ms < 5_000.0),
                "{times:#}"
            );
        }

        let text = report(site, "text")?;
        for word in ["digits", "v12", "v13", "100", &different.to_string()] {
            ensure!(text.contains(word), "no `{word}` in\n{text}");
        }
        Ok(())
    });
}

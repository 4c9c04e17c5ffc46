//! Marks of others on production's packets: neither read nor written.

use anyhow::ensure;
use tests::{Client, Site, on, privileged};

use super::mirrors;

/// Over `lo` a mark that is set on the way out is still there on the way in, behind the tap.
#[test]
fn they_change_nothing_and_arrive() {
    if !privileged() {
        return;
    }
    let taps_lo = |node: &mut toml::Table| {
        node.insert("interfaces".into(), vec!["lo"].into());
    };
    on(Site::with(taps_lo, |_| {}), |site| {
        site.net.node.nft(RULES)?;
        let production = "127.0.0.1:8000".parse()?;
        site.client = Client::new(&site.net.node, production, site.production.answers());
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        let count = |counter| site.net.node.nft_counter("inet", "marks", counter);
        let (every, marked) = (count("every")?, count("marked")?);
        ensure!(
            every > 100 && every == marked,
            "{marked} of {every} packets had their mark"
        );
        ensure!(count("copies")? == 0, "copies carry a mark of production's");
        Ok(())
    });
}

/// Values that a program with its own ideas of the mark might take for its own.
const RULES: &str = "
table inet marks {
    counter every { }
    counter marked { }
    counter copies { }
    chain out {
        type route hook output priority mangle
        tcp dport 8000 meta mark set numgen inc mod 4 map { 0 : 1, 1 : 2, 2 : 3, 3 : 0xffffffff }
        tcp sport 8000 meta mark set 0x6d6d0001
    }
    chain in {
        type filter hook prerouting priority raw
        tcp dport 8000 counter name every
        tcp sport 8000 counter name every
        tcp dport 8000 meta mark { 1, 2, 3, 0xffffffff } counter name marked
        tcp sport 8000 meta mark 0x6d6d0001 counter name marked
    }
    chain uplink {
        type filter hook postrouting priority 0
        udp dport 6181 meta mark != 0 counter name copies
    }
}
";

//! Rules of netfilter that lead clients' connections on to somebody else, before there are any.

use tests::Trial;

use super::{check_refuses, finds, set_is_refused};

/// What a base chain for what comes in does with packets to the service, after another chain.
fn rules(chain: &str, before: &str) -> String {
    format!(
        "
        table ip led {{
            set ports {{
                type inet_service; flags interval; elements = {{ 7990-8010 }};
            }}
            {before}
            chain in {{
                type nat hook prerouting priority dstnat;
                {chain}
            }}
        }}
        "
    )
}

#[test]
fn a_canary_is_refused_where_its_connections_are_led_on() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let node = &trial.scene.net.node;
    let far = "chain far {\ndnat to 10.2.0.8\n}\n";
    let leads = [
        ("iifname eth0 tcp dport 8000 dnat to 10.2.0.8:80", ""),
        ("iif eth0 tcp dport { 80, 8000 } redirect to :9000", ""),
        ("tcp dport @ports redirect to :9000", ""),
        ("fib daddr type local tcp dport 8000 jump far", far),
        ("ip daddr 10.0.0.5 tcp dport 7000-9000 jump far", far),
        (
            "tcp dport 15008 return\ntcp dport != 22 redirect to :15006",
            "",
        ),
    ];
    for (chain, before) in leads {
        node.nft(&rules(chain, before)).unwrap();
        check_refuses(&trial.scene, "netfilter leads connections to *:8000 on");
        node.nft("delete table ip led").unwrap();
    }
    let others = [
        ("iifname eth7 tcp dport 8000 redirect to :9000", ""),
        ("udp dport 8000 redirect to :9000", ""),
        ("tcp dport 8001 redirect to :9000", ""),
        ("ip daddr 10.7.7.7 tcp dport 8001 redirect to :9000", ""),
        (
            "tcp dport 8000 return\nmeta l4proto tcp redirect to :9000",
            "",
        ),
        ("tcp dport 8000 meta mark 7 redirect to :9000", ""),
        ("tcp dport 8000 counter", far),
    ];
    for (chain, before) in others {
        node.nft(&rules(chain, before)).unwrap();
        let said = finds(&trial.scene);
        assert!(!said.contains("netfilter leads"), "{chain}: {said}");
        node.nft("delete table ip led").unwrap();
    }
    trial.set("0.5");
    node.nft(&rules(leads[0].0, "")).unwrap();
    let status = "netfilter leads connections to *:8000 on";
    tests::eventually("status says so", || {
        let said = trial.scene.modelmirror(&["status"]);
        anyhow::ensure!(said.contains(status), "{said}");
        Ok(())
    });
    set_is_refused(&trial, status);
}

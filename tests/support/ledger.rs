//! What the program under test has written down about its orders, to be held against what the
//! authority saw.

use std::collections::BTreeMap;

use serde_json::Value;

use super::place::Place;

/// One order of the history of a CA.
#[derive(Clone, Debug)]
pub struct LedgerOrder {
    pub names: Vec<String>,
    /// What the CA calls it; `None`: the CA never answered, or a crash lost the answer.
    pub url: Option<String>,
    /// It left no certificate that is of any use.
    pub failed: bool,
    /// The CA has issued, and counts that.
    pub issued: bool,
}

/// All orders at all CAs, each CA's oldest first.
pub fn orders(place: &Place) -> Vec<LedgerOrder> {
    let folder = place.state().join("ledger/authorities");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let histories = files.map(|entry| entry.path());
    let histories = histories.filter(|path| path.to_string_lossy().ends_with(".history.jsonl"));
    histories.flat_map(|path| read(&path)).collect()
}

fn read(path: &std::path::Path) -> Vec<LedgerOrder> {
    let mut orders: BTreeMap<u64, LedgerOrder> = BTreeMap::new();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be half written: it is being written, or a crash came.
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let id = |kind: &str| line[kind]["id"].as_u64();
        if let Some(id) = id("order") {
            let names = line["order"]["names"].as_array().into_iter().flatten();
            let names = names.filter_map(Value::as_str).map(str::to_owned);
            let order = LedgerOrder {
                names: names.collect(),
                url: None,
                failed: false,
                issued: false,
            };
            orders.insert(id, order);
        } else if let Some(order) = id("placed").and_then(|id| orders.get_mut(&id)) {
            order.url = line["placed"]["url"].as_str().map(str::to_owned);
        } else if let Some(order) = id("failed").and_then(|id| orders.get_mut(&id)) {
            order.failed = true;
        } else if let Some(order) = id("issued").and_then(|id| orders.get_mut(&id)) {
            order.issued = true;
        }
    }
    orders.into_values().collect()
}

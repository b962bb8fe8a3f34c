//! What is wrong, worst first, and what to do; and one sentence that says it.

use std::sync::Arc;

use crate::app::App;
use crate::peer::{self, Ask};
use crate::shapes;

/// Something that is wrong.
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) todo: &'static str,
}

/// One sentence, and all that is wrong.
pub(super) async fn now(app: &Arc<App>) -> (String, Vec<Trouble>) {
    let mut troubles = Vec::new();
    let mut note = |what: String, todo| troubles.push(Trouble { what, todo });
    let told = peer::ask_all(app, &Ask::Digest).await;
    let own = told
        .get(app.node.name().as_str())
        .and_then(|told| told.as_ref().ok());
    let agree = told
        .values()
        .filter(|told| told.as_ref().ok() == own)
        .count();
    if agree < told.len() {
        note(
            format!("{agree} of {} nodes agree on the registry.", told.len()),
            "For longer than a moment that is wrong: dispatch verify says what differs.",
        );
    }
    if !app.node.is_ready() {
        note(
            "This node is not ready.".to_owned(),
            "It lacks entries of some nodes: look at its links.",
        );
    }
    for member in app.node.members().iter().filter(|member| !member.is_up()) {
        note(
            format!(
                "{} is {}.",
                member.name(),
                shapes::member_state(member.state)
            ),
            "Look at its log.",
        );
    }
    let node = peer::node(app).await;
    for behind in node["behind"].as_array().into_iter().flatten() {
        note(
            format!(
                "This node is {} versions behind {}.",
                behind["by"],
                behind["node"].as_str().unwrap_or_default()
            ),
            "Is the link between them slow or cut?",
        );
    }
    if let Some(left) = node["certificate_ends_in_s"]
        .as_u64()
        .filter(|left| *left < 30 * 86_400)
    {
        note(
            format!(
                "The certificate of this node ends in {} days.",
                left / 86_400
            ),
            "Make another one with dispatch cert.",
        );
    }
    let registry = app.node.registry();
    for service_type in registry.types() {
        let Some(view) = registry.view(service_type.as_str()) else {
            continue;
        };
        let (online, draining, offline) = shapes::counts(&view);
        if online == 0 {
            note(
                format!("Nobody serves {service_type}: {offline} offline, {draining} draining."),
                "Its keys have no owner.",
            );
        }
        for info in view.services().iter().filter(|info| !info.is_online()) {
            let why = info
                .tag(shapes::REASON)
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            note(
                format!(
                    "{} of {service_type} is {}{why}.",
                    info.name(),
                    info.state()
                ),
                "dispatch events says since when.",
            );
        }
    }
    let sentence = match troubles.len() {
        0 => format!("All is well: {} nodes agree.", told.len()),
        1 => "One thing is wrong.".to_owned(),
        many => format!("{many} things are wrong."),
    };
    (sentence, troubles)
}

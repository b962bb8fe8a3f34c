//! The page: every view, what is wrong said first, and nothing that somebody registered taken for HTML.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::json;
use support::{Cluster, chat};

#[tokio::test(flavor = "multi_thread")]
async fn every_view_says_what_there_is_and_escapes_what_others_wrote() {
    let cluster = Cluster::start(2, &[]).await;
    let text = async |path: &str| {
        let answer = cluster.ask("b", "GET", path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert!(
            answer.text.starts_with("<!DOCTYPE html>"),
            "{}",
            answer.text
        );
        assert!(
            !answer.text.contains("<script") && !answer.text.contains("style="),
            "{}",
            answer.text
        );
        answer.text
    };
    support::eventually("all is well", async || {
        let page = text("/").await;
        if page.contains("All is well: 2 nodes agree.") {
            Ok(())
        } else {
            Err(page)
        }
    })
    .await;
    for at in 1..=3 {
        cluster
            .put("a", &format!("chat-{at}"), chat(8000 + at))
            .await;
    }
    let mut odd = chat(8009);
    odd["type"] = json!("<b>&\"'");
    odd["name"] = json!("<script>alert(1)</script>");
    cluster.put("a", "odd", odd).await;
    cluster.online("chat", 3).await;
    let state = json!({ "state": "offline", "reason": "<img src=x>" });
    cluster
        .ask("a", "POST", "/v1/endpoints/chat-2/state", Some(state))
        .await;
    cluster.online("chat", 2).await;
    let now = text("/").await;
    assert!(
        now.contains("chat has 2 of 3 instances online: chat-2 is offline for ")
            && now.contains("s: &lt;img src=x&gt;."),
        "{now}"
    );
    assert!(
        now.contains("&lt;b&gt;&amp;") && !now.contains("<b>"),
        "{now}"
    );
    let one = text("/page/type?type=chat").await;
    assert!(
        one.contains("2 online of 3") && one.contains("aria-label=\"What if chat-1 goes\""),
        "{one}"
    );
    let odd = text("/page/type?type=%3Cb%3E%26%22%27").await;
    assert!(
        odd.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{odd}"
    );
    let key = text("/page/key?type=chat&key=%3Ci%3E").await;
    assert!(
        key.contains("&lt;i&gt;") && key.contains("2 of 2 agents say the same."),
        "{key}"
    );
    assert!(
        text("/page/members")
            .await
            .contains("Each row is how that node sees the others")
    );
    assert!(
        text("/page/events")
            .await
            .contains("chat-1 was registered on a")
    );
    let gone = text("/page/what-if?type=chat&remove=chat-1").await;
    assert!(
        gone.contains("of the keys would move. Nothing was changed."),
        "{gone}"
    );
    assert_eq!(
        cluster
            .ask("b", "GET", "/page/type?type=none", None)
            .await
            .status,
        404
    );
    assert_eq!(
        cluster.ask("b", "GET", "/page/nothing", None).await.status,
        404
    );
    assert_eq!(
        cluster
            .ask("b", "GET", "/page/style.css", None)
            .await
            .status,
        200
    );
    cluster.stop().await;
}

//! Users connect on the widget's page, and what is asked of Belvo for them comes true without anybody's hand.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use reqwest::redirect::Policy;
use serde_json::{Value, json};
use vinculo::deadlines::Deadlines;
use vinculo::link_id::LinkId;
use vinculo::operations::{Links, Order};
use vinculo::runs::{Reason, Run};
use vinculo::simulate::{Advance, Fault, Resource};
use vinculo::store::Tx;
use vinculo::widget::SessionRequest;

use crate::binary::{Ended, Simulate, Site, free_address, run, vinculo};
use crate::harness::{AUTHORIZATION, Flow, PEPPER, TOKEN};
use crate::tables;

/// A user at the widget's page, who presses the button that leads to `/widget/{way}`; where the page leads then.
async fn press(url: &str, way: &str) -> String {
    let browser = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
    let page = browser.get(url).send().await.unwrap();
    let base = page.url().clone();
    let page = page.text().await.unwrap();
    let button = page.split("href=\"").find(|link| link.starts_with(&format!("/widget/{way}?")));
    let button =
        button.unwrap_or_else(|| panic!("no {way} on {page}")).split('"').next().unwrap().replace("&amp;", "&");
    let pressed = browser.get(base.join(&button).unwrap()).send().await.unwrap();
    assert_eq!(pressed.status(), 302);
    pressed.headers()["location"].to_str().unwrap().to_owned()
}

/// Where `url` leads without a page.
async fn leads_to(url: &str) -> String {
    let browser = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
    browser.get(url).send().await.unwrap().headers()["location"].to_str().unwrap().to_owned()
}

/// The link that a success callback names.
fn link_of(callback: &str) -> LinkId {
    let query = callback.strip_prefix("it://success?");
    let query = query.unwrap_or_else(|| panic!("no success: {callback}"));
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "link").unwrap().1.parse().unwrap()
}

fn request(external_id: &str) -> SessionRequest {
    SessionRequest { external_id: external_id.into(), ..SessionRequest::default() }
}

/// Belvo's integration checklist: keys, webhook, token, widget, callback, webhooks, data. Two processes, three
/// commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_connects_and_is_in_the_tables_without_a_manual_step() {
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let served = site.serve();
    let webhook = site.webhook_url();
    let to = ["--people", "20", "--no-limit", "--pepper", PEPPER, "--webhook-latency", "200ms", "--webhook", &webhook];
    let simulate = Simulate::start(belvo, &[&to[..], &["--webhook-authorization", AUTHORIZATION]].concat());

    // The daemon is asked, because it holds the state.
    let ended =
        run(&mut site.command(&["widget", "--external-id", "HJLSI-897809", "--access-mode", "single", "--json"]));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let session: Value = serde_json::from_str(&ended.out).unwrap();
    let url = session["url"].as_str().unwrap();
    let access = session["access"].as_str().unwrap();
    assert_eq!(
        url,
        format!(
            "http://{belvo}/widget/?access_token={access}&locale=pt&institutions=inss_br_employment&access_mode=single&external_id=HJLSI-897809"
        )
    );
    assert!(session["refresh"].is_string() && session["expires_at"].as_str().unwrap().ends_with('Z'), "{session}");
    assert_eq!(site.status()["users_awaited"], 1);

    let callback = press(url, "success").await;
    assert!(callback.ends_with("&institution=inss_br_employment"), "{callback}");
    let link = link_of(&callback);
    assert!(leads_to(url).await.starts_with("it://event?error=ACCESS_TOKEN_NOT_VALID"));

    simulate.ask("state?wait=true").await;
    let truth = simulate.ask("truth").await;
    let truth = tables::from_truth(&serde_json::from_str(&truth).unwrap());
    let found = site.until_true(&|| truth.clone(), &[]);
    let text = |name: &str| found["links"][0][name].as_deref().unwrap_or_default().to_owned();
    assert_eq!(
        (text("link_id"), text("external_id"), text("access_mode")),
        (link.to_string(), "HJLSI-897809".to_owned(), "single".to_owned())
    );
    for table in ["employments", "owners"] {
        assert!(found[table].iter().all(|row| row["link_id"].as_deref() == Some(link.as_str())));
        assert!(!found[table].is_empty(), "no {table}");
    }
    assert_eq!(site.status()["users_awaited"], 0);
    assert_eq!(served.terminate(), Some(0));

    // Nothing that was written down holds the token.
    assert!(!site.logs().contains(access));
    let state = std::fs::read(site.folder.path().join("var/state.db")).unwrap();
    assert!(!state.windows(access.len()).any(|part| part == access.as_bytes()));
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_before_anything_is_sent() {
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let _simulate = Simulate::start(belvo, &["--people", "2"]);
    let widget = |more: &[&str]| run(&mut site.command(&[&["widget"], more].concat()));
    for external_id in ["sp ace", "maria@example.org", "99001234500"] {
        let ended = widget(&["--external-id", external_id]);
        assert_eq!(ended.code, Some(2), "{}", ended.err);
        assert!(ended.err.contains("external_id") && !ended.err.contains(external_id), "{}", ended.err);
    }
    let bare = Site::new(
        belvo,
        &[("VINCULO_WIDGET__BRANDING__COMPANY_NAME", ""), ("VINCULO_WIDGET__CALLBACK_URLS__EXIT", "")],
    );
    let ended = run(&mut bare.command(&["widget", "--external-id", "user-1"]));
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    for key in ["widget.branding.company_name", "widget.callback_urls.exit"] {
        assert!(ended.err.contains(key), "{}", ended.err);
    }
    // Without a daemon the command asks by itself.
    let ended = widget(&["--external-id", "user-1"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let session = ended.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect::<Vec<_>>();
    assert_eq!(session, ["url", "access", "refresh", "expires_at"]);
    let unknown = "2f5d361d-dad6-45d4-a0bf-26d479766067";
    assert_ne!(widget(&["--external-id", "user-2", "--link", unknown]).code, Some(0));
}

#[tokio::test]
async fn an_application_asks_over_the_api_and_sees_who_is_awaited() {
    let flow = Flow::start(2).await;
    let base = format!("http://{}", flow.running.daemon.admin_address.unwrap());
    let ask = async |token: &str, body: Value| {
        let request = reqwest::Client::new().post(format!("{base}/v1/widget-sessions")).bearer_auth(token);
        let answer = request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let links = async || {
        let url = format!("{base}/v1/links?external_id=user-1");
        let answer = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap();
        serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap()
    };
    assert_eq!(ask("somebody-elses-token-of-old", json!({"external_id": "user-1"})).await.0, 401);
    let (status, refused) = ask(TOKEN, json!({"external_id": "a b", "access_mode": "both", "link": "none"})).await;
    let fields = refused["error"]["fields"].as_array().unwrap();
    let fields: Vec<_> = fields.iter().map(|wrong| wrong["field"].as_str().unwrap()).collect();
    assert_eq!((status, fields), (422, vec!["external_id", "link", "access_mode"]));
    assert_eq!(ask(TOKEN, json!({"external_id": "user-1", "colour": "red"})).await.0, 422);
    assert!(links().await["waiting_for_user"].is_null());

    let (status, session) = ask(TOKEN, json!({"external_id": "user-1", "access_mode": "single"})).await;
    assert_eq!(status, 201);
    let awaited = links().await;
    assert_eq!(awaited["links"], json!([]));
    assert_eq!(awaited["waiting_for_user"]["access_mode"], "single");
    assert_eq!(awaited["waiting_for_user"]["expires_at"], session["expires_at"]);
    let link = link_of(&press(session["url"].as_str().unwrap(), "success").await);
    flow.until_idle().await;
    let connected = links().await;
    assert_eq!(connected["links"][0]["link_id"], link.as_str());
    assert!(connected["waiting_for_user"].is_null());
}

#[tokio::test]
async fn a_link_whose_password_is_old_works_again_after_the_widget() {
    let flow = Flow::start(2).await;
    let widgets = &flow.running.daemon.operations.widgets;
    let session = widgets.create(request("user-1")).await.unwrap();
    let link = link_of(&press(&session.url, "success").await);
    flow.until_idle().await;
    let told = format!(r#"{{"link":"{link}","code":"invalid_credentials"}}"#);
    let simulator = session.url.split("/widget/").next().unwrap();
    let told = reqwest::Client::new().post(format!("{simulator}/_sim/webhooks?wait=true")).body(told).send().await;
    assert_eq!(told.unwrap().status(), 200);
    assert_eq!(status(&flow, &link).await, "invalid");

    let update = SessionRequest { link: Some(link.to_string()), ..request("user-1") };
    let session = widgets.create(update).await.unwrap();
    assert!(!session.url.contains("external_id"), "{}", session.url.split("access_token").next().unwrap());
    assert_eq!(link_of(&press(&session.url, "success").await), link);
    flow.until_idle().await;
    assert_eq!(status(&flow, &link).await, "valid");
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
    let left = widgets.create(request("user-2")).await.unwrap();
    assert!(press(&left.url, "exit").await.starts_with("it://exit?last_encountered_error_code=login_error&"));
}

#[tokio::test]
async fn a_user_whose_webhooks_are_lost_is_found_all_the_same() {
    let lost = |settings: &mut vinculo::simulate::Settings| settings.faults = vec![Fault::parse("lost").unwrap()];
    let flow = Flow::start_with(2, lost, &[]).await;
    let widgets = &flow.running.daemon.operations.widgets;
    let session = widgets.create(request("user-1")).await.unwrap();
    let link = link_of(&press(&session.url, "success").await);
    flow.until_idle().await;
    assert_eq!(flow.simulation.calls("/api/br/employments/", None), 0);
    flow.running.clock.advance(Duration::from_mins(12));
    widgets.follow_up().await.unwrap();
    flow.until_idle().await;
    let found = flow.running.tables();
    assert_eq!(found["links"][0]["link_id"].as_deref(), Some(link.as_str()));
    assert!(!found["employments"].is_empty() && !found["owners"].is_empty());
}

#[tokio::test]
async fn single_links_show_new_months_after_a_recollect_and_only_then() {
    let flow = Flow::start(6).await;
    let widgets = &flow.running.daemon.operations.widgets;
    for user in 0..6 {
        let single = SessionRequest { access_mode: Some("single".into()), ..request(&format!("user-{user}")) };
        press(&widgets.create(single).await.unwrap().url, "success").await;
    }
    flow.until_idle().await;
    let before = flow.running.tables();
    assert_eq!(flow.simulation.advance(Advance { months: 3, ..Advance::default() }), 0);
    flow.running.clock.advance(Duration::from_hours(92 * 24));

    let all = || Order::Recollect { links: Links::All(true), resources: Vec::new() };
    let ended = carry_out(&flow, all()).await;
    assert_eq!((ended.outcome.as_deref(), ended.progress.done, ended.progress.total), (Some("done"), 6, Some(6)));
    // When Belvo was last at the institution, only its list of links tells.
    carry_out(&flow, Order::SyncLinks).await;
    flow.until_idle().await;
    let after = flow.running.tables();
    tables::assert_true(&after, &flow.truth(), &[]);
    assert!(after["salaries"].len() > before["salaries"].len());

    // Belvo is asked once in ten minutes.
    let again = carry_out(&flow, all()).await;
    assert_eq!(again.progress.failed.get("link_cooling"), Some(&6), "{again:?}");
    let refreshes = |path: &str| flow.simulation.arrivals().iter().filter(|call| call.path.ends_with(path)).count();
    assert_eq!(refreshes("/refresh/"), 6);
}

#[tokio::test]
async fn a_bulk_recollect_is_agreed_to_first() {
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let simulate = Simulate::start(belvo, &["--people", "3", "--no-limit", "--webhook-latency", "1ms"]);
    simulate.tell("connect", "").await;
    assert_eq!(run(&mut site.command(&["links", "sync"])).code, Some(0));
    let ended = run(&mut site.command(&["refresh", "--all", "--recollect"]));
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("3 calls on its bill") && ended.err.contains("--yes"), "{}", ended.err);
    // Nothing listens here, so the results are looked for.
    let ended = run(&mut site.command(&["refresh", "--all", "--recollect", "--resource", "employments", "--yes"]));
    assert_eq!((ended.code, ended.out.lines().next()), (Some(0), Some("refreshed 3")), "{}", ended.err);
}

#[tokio::test]
async fn a_link_that_is_deleted_at_belvo_keeps_its_rows_and_is_fetched_no_more() {
    let flow = Flow::start(3).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let before = flow.running.tables();
    let id = flow.simulation.link_ids().remove(0);
    let link: LinkId = id.parse().unwrap();
    let ended = carry_out(&flow, Order::Delete(link.clone())).await;
    assert_eq!((ended.outcome.as_deref(), ended.progress.done), (Some("done"), 1));
    assert_eq!(status(&flow, &link).await, "deleted");
    assert!(!flow.simulation.link_ids().contains(&id));
    let after = flow.running.tables();
    assert_eq!(after["employments"], before["employments"]);
    let calls = flow.simulation.arrivals().len();
    assert!(!flow.simulation.send_again(&id, Resource::Employments, 1));
    // A second wish finds it gone already, when Belvo was asked once more.
    assert_eq!(carry_out(&flow, Order::Delete(link.clone())).await.outcome.as_deref(), Some("done"));
    flow.until_idle().await;
    assert_eq!(flow.simulation.arrivals().len(), calls + 2);
}

#[tokio::test]
async fn a_demo_that_serves_opens_its_widget_and_takes_one_user_more() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let mut demo = vinculo()
        .args(["demo", "--people", "1", "--serve", "--log-level", "error", "--dir"])
        .arg(&dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    let dashboard = said.into_iter().find_map(|line| {
        let (_, after) = line.split_once("dashboard on ")?;
        Some(after.split(',').next().unwrap().to_owned())
    });
    let dashboard = dashboard.expect("the demo does not serve");
    let config = std::fs::read_to_string(dir.join("vinculo.toml")).unwrap();
    let token = config.lines().find_map(|line| line.strip_prefix("token = \"")).unwrap().split('"').next().unwrap();
    let request = reqwest::Client::new().post(format!("{dashboard}v1/widget-sessions")).bearer_auth(token);
    let request = request.header("content-type", "application/json").body(r#"{"external_id":"user-1"}"#);
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert_eq!(status, 201, "{text}");
    let session: Value = serde_json::from_str(&text).unwrap();
    let callback = press(session["url"].as_str().unwrap(), "success").await;
    assert!(callback.starts_with("https://demo.example/done?link="), "{callback}");

    // Its clock stands some days behind ours, and its word counts: what is of today is not final.
    let features = |arguments: &[&str]| {
        let ended = run(vinculo().args(["features", "--config"]).arg(dir.join("vinculo.toml")).args(arguments));
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.out, ended.err);
        ended.err.contains("is final")
    };
    assert_eq!([&[][..], &[]].map(features), [false; 2]);
    let yesterday = ["--as-of", "2026-11-19"];
    assert_eq!([&yesterday[..], &yesterday].map(features), [false, true]);
    demo.kill().unwrap();
    demo.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_deleted_here_keeps_its_rows_and_nothing_of_it_is_asked_for() {
    let simulate = Simulate::start(free_address(), &["--people", "2", "--no-limit"]);
    let site = Site::new(simulate.address, &[]);
    simulate.tell("connect", "{}").await;
    let command = |arguments: &[&str], code: i32| {
        let ended = run(&mut site.command(arguments));
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
        ended.out
    };
    command(&["links", "sync"], 0);
    command(&["refresh", "--all"], 0);
    let listed = command(&["links", "list", "--json"], 0);
    let ids: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["link_id"].as_str().unwrap().to_owned())
        .collect();
    let shown = |id: &str| -> Value { serde_json::from_str(&command(&["links", "show", id, "--json"], 0)).unwrap() };
    let rows = || tables::from_duckdb(&site.lake());
    let before = rows();

    // Alone, by its place; then beside a daemon, by its option.
    let told = command(&["links", "delete", &ids[0]], 0);
    assert!(told.contains("is paused") && told.contains("vinculo erase"), "{told}");
    let served = site.serve();
    command(&["links", "delete", "--link", &ids[1]], 0);
    for id in &ids {
        let link = shown(id);
        assert_eq!((&link["status"], &link["paused_reason"]), (&"valid".into(), &"paused_by_operator".into()));
    }
    for sweep in [&["refresh", "--all"][..], &["refresh", "--older-than", "0s"]] {
        assert_eq!(command(sweep, 0).trim(), "refreshed 0", "{sweep:?}");
    }
    // Belvo has them still, and that it says so takes nothing back.
    command(&["links", "sync"], 0);
    assert_eq!(site.status()["waiting"], 0);
    assert_eq!(shown(&ids[0])["paused_reason"], "paused_by_operator");
    let after = rows();
    for table in ["employments", "owners", "salaries"] {
        assert_eq!(after[table], before[table], "{table}");
    }
    command(&["links", "delete", "2f5d361d-dad6-45d4-a0bf-26d479766067"], 1);
    command(&["links", "delete"], 2);
    command(&["links", "delete", &ids[0], "--link", &ids[0]], 2);
    assert_eq!(served.terminate(), Some(0));
}

/// Prose that no test touches goes stale: the configuration and the commands of the README's section, on other ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_way_to_connect_a_user_leads_there() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split("## Connect a user").nth(1).unwrap().split("\n## ").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("try")).unwrap();
    let ports = ["127.0.0.1:8080", "127.0.0.1:8090", "127.0.0.1:9090"].map(|shown| (shown, free_address().to_string()));
    let here = |text: &str| ports.iter().fold(text.to_owned(), |text, (shown, free)| text.replace(shown, free));
    let toml = section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    std::fs::write(folder.path().join("try/vinculo.toml"), here(toml)).unwrap();
    let shown = section.lines().filter_map(|line| line.strip_prefix("vinculo ")).map(here);
    let commands: Vec<Vec<String>> = shown.map(|line| words(&line)).collect();
    assert_eq!(
        commands.iter().map(|command| command[0].as_str()).collect::<Vec<_>>(),
        ["serve", "simulate", "widget", "links", "sql"]
    );
    let command = |words: &[String]| {
        let mut command = vinculo();
        command.current_dir(folder.path()).args(words);
        command
    };
    let quiet = || Stdio::null();
    let mut running: Vec<_> = commands[..2]
        .iter()
        .map(|words| command(words).arg("--log-level=error").stdout(quiet()).stderr(quiet()).spawn().unwrap())
        .collect();
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while !ports.iter().all(|(_, address)| std::net::TcpStream::connect(address).is_ok()) {
        assert!(std::time::Instant::now() < deadline, "somebody does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let widget = run(&mut command(&commands[2]));
    assert_eq!(widget.code, Some(0), "{}", widget.err);
    let url = widget.out.lines().next().unwrap().strip_prefix("url").unwrap().trim();
    let link = press(url, "success").await;
    assert!(link.starts_with("https://app.example/done?link="), "{link}");
    // The link is listed before Belvo has told of it.
    let links = until(|| run(&mut command(&commands[3])), |ended| ended.out.contains("single")).await;
    assert!(links.out.contains("user-1"), "{}", links.out);
    let found = until(|| run(&mut command(&commands[4])), |ended| ended.out.contains("user-1")).await;
    assert_eq!(found.code, Some(0), "{}", found.err);
    for child in &mut running {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Runs `command` until `is_done`, for a minute.
async fn until(command: impl Fn() -> Ended, is_done: impl Fn(&Ended) -> bool) -> Ended {
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    loop {
        let ended = command();
        if is_done(&ended) {
            return ended;
        }
        assert!(std::time::Instant::now() < deadline, "{ended:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The words of a line as a shell would read them, with double quotes alone.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate().flat_map(|(at, part)| {
        let quoted = (at % 2 == 1).then(|| part.to_owned());
        let plain = (at % 2 == 0).then(|| part.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        quoted.into_iter().chain(plain.into_iter().flatten())
    });
    parts.collect()
}

async fn carry_out(flow: &Flow, order: Order) -> Run {
    let operations = &flow.running.daemon.operations;
    let id = operations.start(order, Reason::Command).await.unwrap();
    let mut run = operations.runs.get(&id).await.unwrap().unwrap();
    while run.finished_at.is_none() {
        run = operations.runs.get_news(&run, Duration::from_secs(10)).await.unwrap().unwrap();
    }
    run
}

async fn status(flow: &Flow, link: &LinkId) -> String {
    let link = link.clone();
    let read = move |tx: &Tx<'_>| {
        Ok(vinculo::links::view::show(tx, &link, vinculo::clock::Timestamp::from_micros(0))?.unwrap())
    };
    flow.running.daemon.store.read(read).await.unwrap().status.unwrap()
}

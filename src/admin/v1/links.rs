//! `GET /v1/links?external_id=&status=`, `GET /v1/links/{link_id}`, `POST /v1/links/{link_id}/refresh`,
//! `POST /v1/links/{link_id}/untrack`, `POST /v1/links/refresh`, `POST /v1/links/sync`: the tracked links, how
//! fresh each is, and what to do about it.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::Route;
use super::{Api, Problem, body, query};
use crate::admin::role::Role;
use crate::coverage;
use crate::link_id::LinkId;
use crate::links::view::{self, Filter, View};
use crate::operations::{Links, Order, Refused};
use crate::resources::{self, Resource};
use crate::store::Tx;
use crate::widget::{self, Awaited};

/// A failure of what names links.
pub(super) const NO_LINK: &[(u16, &str)] = &[(404, "no tracked link is meant")];

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<Page, _, _>("/v1/links", "Lists the tracked links", list).query::<Wish>(),
        Route::order("/v1/links/refresh", Role::Operate, "Fetches what Belvo holds of some links", refresh_many)
            .body::<ManyWanted>()
            .fails(NO_LINK),
        Route::order("/v1/links/sync", Role::Operate, "Compares the tracked links with Belvo's list", sync),
        Route::get::<One, _, _>("/v1/links/{link_id}", "Shows one link: its life, how fresh it is, what to do", show),
        Route::order("/v1/links/{link_id}/refresh", Role::Operate, "Fetches what Belvo holds of a link", refresh)
            .optional_body::<Wanted>(),
        Route::order(
            "/v1/links/{link_id}/untrack",
            Role::Operate,
            "Asks for nothing of a link any more, until a person resumes it; the rows stay",
            untrack,
        )
        .fails(NO_LINK),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// Only those of this external id.
    external_id: Option<String>,
    /// Only those with this status.
    status: Option<String>,
    /// How many at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// A page of the tracked links.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Links")]
struct Page {
    links: Vec<View>,
    /// The `after` of the next page.
    next: Option<String>,
    /// The widget session of the external id asked for whose user is still to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for_user: Option<Awaited>,
}

/// One link.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneLink")]
struct One {
    link: View,
}

async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Page>, Problem> {
    let Wish { external_id, status, limit, after } = query(&uri)?;
    let (limit, filter) = (super::limit(limit)?, Filter { external_id, status });
    let now = api.operations.clock.now();
    let read = move |tx: &Tx<'_>| {
        let page = view::list(tx, &filter, &after.unwrap_or_default(), limit, now)?;
        Ok((page, widget::awaited(tx, filter.external_id.as_deref(), now)?))
    };
    let ((links, next), waiting_for_user) = api.operations.store.read(read).await?;
    let links = api.covered(links).await;
    Ok(Json(Page { links, next, waiting_for_user }))
}

async fn show(State(api): State<Api>, Path(link_id): Path<String>) -> Result<Json<One>, Problem> {
    let link_id: LinkId = link_id.parse().map_err(Refused::from)?;
    let now = api.operations.clock.now();
    match api.operations.store.read(move |tx| view::show(tx, &link_id, now)).await? {
        Some(link) => {
            let mut links = api.covered(vec![link]).await;
            links.pop().map(|link| Json(One { link })).ok_or_else(not_tracked)
        }
        None => Err(not_tracked()),
    }
}

impl Api {
    /// The same links, with what is published of each.
    async fn covered(&self, mut links: Vec<View>) -> Vec<View> {
        let lake = self.places.lake.clone();
        coverage::in_turn(move || {
            view::cover(&mut links, &lake);
            links
        })
        .await
    }
}

fn not_tracked() -> Problem {
    Problem::missing("no_such_link", "this link is not tracked; POST /v1/links/sync asks Belvo for its list")
}

/// Which resources to refresh; all, unless told.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Names of resources, such as `owners`.
    #[serde(default)]
    resources: Vec<String>,
}

async fn refresh(State(api): State<Api>, Path(link_id): Path<String>, request: Request) -> Result<Response, Problem> {
    let Wanted { resources } = body(request).await?;
    let id: LinkId = link_id.parse().map_err(Refused::from)?;
    let tracked = id.clone();
    let now = api.operations.clock.now();
    // An address is not the place to make a link known by a slip of the hand.
    if api.operations.store.read(move |tx| view::show(tx, &tracked, now)).await?.is_none() {
        return Err(not_tracked());
    }
    let links = Links::LinkId(id.as_str().to_owned());
    api.order(Order::Refresh { links, resources: named(&resources)? }).await
}

async fn untrack(State(api): State<Api>, Path(link_id): Path<String>) -> Result<Response, Problem> {
    let link: LinkId = link_id.parse().map_err(Refused::from)?;
    api.order(Order::Untrack(link)).await
}

/// Which links and resources to refresh.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ManyWanted {
    /// Which links.
    #[schemars(with = "Links", required)]
    pub(super) links: Option<Links>,
    /// Names of resources, such as `owners`; all, unless told.
    #[serde(default)]
    pub(super) resources: Vec<String>,
}

async fn refresh_many(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let ManyWanted { links, resources } = body(request).await?;
    api.order(Order::Refresh { links: which(links)?, resources: named(&resources)? }).await
}

/// The links that were named; naming none is a mistake.
pub(super) fn which(links: Option<Links>) -> Result<Links, Problem> {
    links.ok_or_else(|| {
        Problem::invalid(
            r#"say which links: {"links": {"link_ids": […]}}, {"external_ids": […]}, {"all": true} or {"older_than_seconds": …}"#,
        )
    })
}

async fn sync(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::SyncLinks).await
}

pub(super) fn named(names: &[String]) -> Result<Vec<&'static Resource>, Problem> {
    let find = |name: &String| {
        Resource::by_name(name).ok_or_else(|| {
            let known = resources::ALL.map(|resource| resource.name).join(", ");
            Problem::invalid(format!("resources are some of {known}"))
        })
    };
    names.iter().map(find).collect()
}

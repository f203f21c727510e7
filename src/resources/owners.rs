//! Owners: the person behind a link.

use super::Resource;

/// `GET /api/owners/`.
pub static RESOURCE: Resource = Resource {
    name: "owners",
    endpoint: "/api/owners/",
    webhook_type: "OWNERS",
    total_key: "total_owners",
};

//! Employments: the jobs that INSS knows of a person, with occupations and monthly pay.

use super::Resource;

/// `GET /api/br/employments/`.
pub static RESOURCE: Resource = Resource {
    name: "employments",
    endpoint: "/api/br/employments/",
    webhook_type: "EMPLOYMENTS",
    total_key: "total_employments",
};

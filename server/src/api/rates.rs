//! How nodes fare at each place: what plans are told, with intervals.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use control::learning::Learnt;
use health::rates::{Counts, Interval, Place, Rates};
use serde::Serialize;
use utoipa::ToSchema;

use super::Listed;
use super::auth::{Caller, Role};
use super::problem::ApiError;
use crate::app::App;

/// A rate with its 90 % interval.
#[derive(Debug, Serialize, ToSchema)]
pub struct IntervalView {
    /// Expected.
    pub mean: f64,
    /// It is less with a probability of 5 %.
    pub q05: f64,
    /// It is more with a probability of 5 %.
    pub q95: f64,
}

impl IntervalView {
    fn of(interval: &Interval, scale: f64) -> Self {
        Self { mean: interval.mean * scale, q05: interval.q05 * scale, q95: interval.q95 * scale }
    }
}

/// How nodes fare at a place.
#[derive(Debug, Serialize, ToSchema)]
pub struct RatesView {
    /// Cloud.
    pub provider: String,
    /// Its region.
    pub region: String,
    /// Its instance type.
    pub instance_type: String,
    /// GPU model.
    pub gpu: String,
    /// GPU-hours in service that were counted; what is old counts less.
    pub gpu_hours: f64,
    /// Faults that were counted in them.
    pub faults: f64,
    /// Boots that were counted.
    pub boots: f64,
    /// Faults of a GPU in a day.
    pub faults_per_gpu_day: IntervalView,
    /// Share of boots that pass the gate.
    pub boot_pass: IntervalView,
    /// Share of node-hours in service.
    pub in_service: IntervalView,
    /// Seconds out of service after a fault: median.
    pub repair_p50_s: f64,
    /// Seconds out of service after a fault: 95 %.
    pub repair_p95_s: f64,
    /// Speed as a share of the median of its type: 10 %.
    pub speed_p10: f64,
    /// Speed as a share of the median of its type: median.
    pub speed_p50: f64,
}

impl RatesView {
    fn of((place, rates, counts): (&Place, &Rates, &Counts)) -> Self {
        let Place { provider, region, instance_type, gpu } = place.clone();
        Self {
            provider,
            region,
            instance_type,
            gpu,
            gpu_hours: counts.gpu_hours,
            faults: counts.faults,
            boots: counts.boots,
            faults_per_gpu_day: IntervalView::of(&rates.faults_per_gpu_h, 24.0),
            boot_pass: IntervalView::of(&rates.boot_pass, 1.0),
            in_service: IntervalView::of(&rates.in_service, 1.0),
            repair_p50_s: rates.repair_p50_s,
            repair_p95_s: rates.repair_p95_s,
            speed_p10: rates.speed_p10,
            speed_p50: rates.speed_p50,
        }
    }
}

/// How nodes fare at each place, as plans are told.
#[utoipa::path(
    get, path = "/v1/rates", tag = "fleet",
    responses((status = 200, description = "All places where nodes have been", body = Listed<RatesView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<RatesView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let learnt: Arc<Learnt> = app.store.shared().await?;
    Ok(Json(Listed { items: learnt.health.places().map(RatesView::of).collect(), next: None }))
}

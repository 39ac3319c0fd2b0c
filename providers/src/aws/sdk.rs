//! The calls, carried out by the AWS SDK for Rust. Nothing is decided and nothing is retried here.

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Credentials;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types as api;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::ec2::{
    Described, Ec2, Ec2Error, InstanceType, Launch, PlacementScore, Purchase, Reservation, SpotPrice, Warning,
};
use fleet::cloud::InstanceState;

/// One call may take so long. A launch that takes longer is looked for by its token.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pages that are read at most of one answer.
const PAGES: usize = 200;

/// EC2 in one region.
#[derive(Debug, Clone)]
pub struct SdkEc2 {
    client: Client,
    region: String,
}

impl SdkEc2 {
    /// With the machine's credentials: environment, profile, web identity, container or instance role, in the order that
    /// AWS tools use. `endpoint_url` stands in for the region's own; `credentials` (key and secret) for the machine's.
    pub async fn connect(region: &str, endpoint_url: Option<&str>, credentials: Option<(&str, &str)>) -> Self {
        // No second TLS library: the same one as everywhere.
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).build());
        if let Some(url) = endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some((key, secret)) = credentials {
            loader = loader.credentials_provider(Credentials::new(key, secret, None, None, "configuration"));
        }
        Self { client: Client::new(&loader.load().await), region: region.to_owned() }
    }
}

fn failed<E>(call: &'static str) -> impl Fn(SdkError<E, HttpResponse>) -> Ec2Error
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    move |error| {
        let status = error.raw_response().map(|r| r.status().as_u16());
        // Something that could not even be sent did nothing.
        let unsent = matches!(error, SdkError::ConstructionFailure(_));
        let refused = unsent || status.is_some_and(|s| (400..500).contains(&s));
        let code = error.code().map(str::to_owned);
        let message = match (error.message(), status) {
            (Some(text), _) => text.to_owned(),
            (None, Some(status)) if code.is_none() => format!("answered with {status}"),
            _ => chain_of(&error),
        };
        Ec2Error { call, code, message, refused, source: None }
    }
}

/// An error and its causes, each once.
fn chain_of(error: &dyn Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
        next = cause.source();
    }
    parts.join(": ")
}

fn millis(time: Option<&DateTime>) -> Option<i64> {
    time.and_then(|t| t.to_millis().ok())
}

fn count(number: Option<i32>) -> u32 {
    number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn typed(names: &[String]) -> Option<Vec<api::InstanceType>> {
    Some(names.iter().map(|n| api::InstanceType::from(n.as_str())).collect())
}

fn filter(name: &str, values: impl IntoIterator<Item = String>) -> api::Filter {
    api::Filter::builder().name(name).set_values(Some(values.into_iter().collect())).build()
}

fn described(instance: &api::Instance) -> Option<Described> {
    let state = match instance.state()?.name()? {
        api::InstanceStateName::Pending => InstanceState::Pending,
        api::InstanceStateName::Running => InstanceState::Running,
        // On its way to stopped it is not billed for GPUs any more.
        api::InstanceStateName::Stopping | api::InstanceStateName::Stopped => InstanceState::Stopped,
        api::InstanceStateName::Terminated => InstanceState::Ended,
        // A state that this version does not know: not taken for one that runs.
        _ => InstanceState::Ending,
    };
    let tag = |t: &api::Tag| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()));
    Some(Described {
        id: instance.instance_id()?.to_owned(),
        instance_type: instance.instance_type()?.as_str().to_owned(),
        zone: instance.placement().and_then(|p| p.availability_zone()).unwrap_or_default().to_owned(),
        spot: instance.instance_lifecycle().is_some_and(|l| *l == api::InstanceLifecycleType::Spot),
        reservation: instance.capacity_reservation_id().map(str::to_owned),
        state,
        launched_at_ms: millis(instance.launch_time()).unwrap_or(0),
        tags: instance.tags().iter().filter_map(tag).collect(),
    })
}

fn spot_options() -> api::InstanceMarketOptionsRequest {
    let options = api::SpotMarketOptions::builder()
        .spot_instance_type(api::SpotInstanceType::OneTime)
        .instance_interruption_behavior(api::InstanceInterruptionBehavior::Terminate);
    api::InstanceMarketOptionsRequest::builder()
        .market_type(api::MarketType::Spot)
        .spot_options(options.build())
        .build()
}

fn outside_reservations() -> api::CapacityReservationSpecification {
    let preference = api::CapacityReservationPreference::None;
    api::CapacityReservationSpecification::builder().capacity_reservation_preference(preference).build()
}

fn into_reservation(id: &str) -> api::CapacityReservationSpecification {
    let target = api::CapacityReservationTarget::builder().capacity_reservation_id(id).build();
    api::CapacityReservationSpecification::builder().capacity_reservation_target(target).build()
}

#[async_trait]
impl Ec2 for SdkEc2 {
    async fn run_instances(&self, launch: &Launch) -> Result<Vec<Described>, Ec2Error> {
        let (template, optional) = (&launch.template, |list: &[String]| (!list.is_empty()).then(|| list.to_vec()));
        let tags = launch.tags.iter().map(|(k, v)| api::Tag::builder().key(k).value(v).build()).collect();
        let specification =
            api::TagSpecification::builder().resource_type(api::ResourceType::Instance).set_tags(Some(tags)).build();
        let mut call = self
            .client
            .run_instances()
            .instance_type(api::InstanceType::from(launch.instance_type.as_str()))
            .min_count(1)
            .max_count(i32::try_from(launch.count.max(1)).unwrap_or(i32::MAX))
            .client_token(&launch.client_token)
            .user_data(aws_smithy_types::base64::encode(&launch.user_data))
            .placement(api::Placement::builder().availability_zone(&launch.zone).build())
            .set_subnet_id(launch.subnet.clone())
            .set_image_id(template.image.clone())
            .set_key_name(template.key_name.clone())
            .set_security_group_ids(optional(&template.security_groups))
            .tag_specifications(specification);
        if let Some(id) = &template.launch_template {
            call = call.launch_template(api::LaunchTemplateSpecification::builder().launch_template_id(id).build());
        }
        if let Some(name) = &template.instance_profile {
            call = call.iam_instance_profile(api::IamInstanceProfileSpecification::builder().name(name).build());
        }
        call = match &launch.purchase {
            Purchase::OnDemand => call.capacity_reservation_specification(outside_reservations()),
            Purchase::Spot => call.instance_market_options(spot_options()),
            Purchase::Reservation(id) => call.capacity_reservation_specification(into_reservation(id)),
        };
        let answer = call.send().await.map_err(failed("RunInstances"))?;
        Ok(answer.instances().iter().filter_map(described).collect())
    }

    async fn terminate_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.client.terminate_instances().instance_ids(id).send().await.map_err(failed("TerminateInstances"))?;
        Ok(())
    }

    async fn stop_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.client.stop_instances().instance_ids(id).send().await.map_err(failed("StopInstances"))?;
        Ok(())
    }

    async fn start_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.client.start_instances().instance_ids(id).send().await.map_err(failed("StartInstances"))?;
        Ok(())
    }

    async fn report_instance(&self, id: &str, what: &str) -> Result<(), Ec2Error> {
        let call = self.client.report_instance_status().instances(id).status(api::ReportStatusType::Impaired);
        let call = call.reason_codes(api::ReportInstanceReasonCodes::Other);
        // EC2 stores the text and does not read it by machine; it must not carry secrets, and carries none.
        #[allow(deprecated, reason = "there is no other place for what was found")]
        let call = call.description(what.chars().take(500).collect::<String>());
        call.send().await.map_err(failed("ReportInstanceStatus"))?;
        Ok(())
    }

    async fn describe_instances(&self, (key, value): (&str, &str)) -> Result<Vec<Described>, Ec2Error> {
        let by_tag = filter(&format!("tag:{key}"), [value.to_owned()]);
        let mut pages = self.client.describe_instances().filters(by_tag).into_paginator().send();
        let mut all = Vec::new();
        let mut read = 0;
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeInstances"))?;
            all.extend(page.reservations().iter().flat_map(|r| r.instances()).filter_map(described));
            read += 1;
            if read >= PAGES {
                // A list that is not whole would make instances look gone.
                let message = format!("more than {PAGES} pages of instances");
                return Err(Ec2Error { call: "DescribeInstances", code: None, message, refused: false, source: None });
            }
        }
        Ok(all)
    }

    async fn warnings(&self) -> Result<Vec<Warning>, Ec2Error> {
        let mut all = Vec::new();
        // A reboot leaves the instance where it is; these take it away.
        let ending = ["instance-retirement", "instance-stop", "system-maintenance"].map(str::to_owned);
        let events = filter("event.code", ending);
        let mut pages = self.client.describe_instance_status().filters(events).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeInstanceStatus"))?;
            for status in page.instance_statuses() {
                let Some(id) = status.instance_id() else { continue };
                let ahead = |e: &&api::InstanceStatusEvent| {
                    // AWS keeps events for a while after they ended, and says so in the text alone (EC2 user guide).
                    !e.description().is_some_and(|d| d.starts_with("[Completed]") || d.starts_with("[Canceled]"))
                };
                all.extend(status.events().iter().filter(ahead).map(|event| Warning {
                    instance: id.to_owned(),
                    code: event.code().map_or_else(String::new, |c| c.as_str().to_owned()),
                    at_ms: millis(event.not_before()),
                }));
            }
        }
        let marked = filter("status-code", ["marked-for-termination", "marked-for-stop"].map(str::to_owned));
        let mut pages = self.client.describe_spot_instance_requests().filters(marked).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeSpotInstanceRequests"))?;
            all.extend(page.spot_instance_requests().iter().filter_map(|request| {
                let code = request.status()?.code()?.to_owned();
                Some(Warning { instance: request.instance_id()?.to_owned(), code, at_ms: None })
            }));
        }
        Ok(all)
    }

    async fn instance_types(&self, names: &[String]) -> Result<Vec<InstanceType>, Ec2Error> {
        // By filter: by name, one type that the region lacks would fail the whole call.
        let by_name = filter("instance-type", names.to_vec());
        let mut pages = self.client.describe_instance_types().filters(by_name).into_paginator().send();
        let one = |info: &api::InstanceTypeInfo| {
            let gpu = info.gpu_info()?.gpus().first()?;
            Some(InstanceType {
                name: info.instance_type()?.as_str().to_owned(),
                gpu: gpu.name().unwrap_or_default().to_owned(),
                gpus: count(gpu.count()),
            })
        };
        let mut all = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeInstanceTypes"))?;
            all.extend(page.instance_types().iter().filter_map(one));
        }
        Ok(all)
    }

    async fn offerings(&self, types: &[String]) -> Result<Vec<(String, String)>, Ec2Error> {
        let mut pages = self
            .client
            .describe_instance_type_offerings()
            .location_type(api::LocationType::AvailabilityZone)
            .filters(filter("instance-type", types.to_vec()))
            .into_paginator()
            .send();
        let mut all = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeInstanceTypeOfferings"))?;
            let one = |o: &api::InstanceTypeOffering| {
                Some((o.instance_type()?.as_str().to_owned(), o.location()?.to_owned()))
            };
            all.extend(page.instance_type_offerings().iter().filter_map(one));
        }
        Ok(all)
    }

    async fn spot_prices(&self, types: &[String], now_ms: i64) -> Result<Vec<SpotPrice>, Ec2Error> {
        // From now on: the present price of each pool, and nothing older (EC2 API reference).
        let mut pages = self
            .client
            .describe_spot_price_history()
            .set_instance_types(typed(types))
            .product_descriptions("Linux/UNIX")
            .start_time(DateTime::from_millis(now_ms))
            .into_paginator()
            .send();
        let mut all = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeSpotPriceHistory"))?;
            all.extend(page.spot_price_history().iter().filter_map(|price| {
                Some(SpotPrice {
                    instance_type: price.instance_type()?.as_str().to_owned(),
                    zone: price.availability_zone()?.to_owned(),
                    usd_per_h: price.spot_price()?.parse().ok()?,
                    at_ms: millis(price.timestamp())?,
                })
            }));
        }
        Ok(all)
    }

    async fn placement_scores(&self, types: &[String], nodes: u32) -> Result<Vec<PlacementScore>, Ec2Error> {
        let call = self
            .client
            .get_spot_placement_scores()
            .set_instance_types(Some(types.to_vec()))
            .target_capacity(i32::try_from(nodes).unwrap_or(i32::MAX))
            .single_availability_zone(true)
            .region_names(&self.region);
        let answer = call.send().await.map_err(failed("GetSpotPlacementScores"))?;
        let one = |s: &api::SpotPlacementScore| {
            Some(PlacementScore { zone_id: s.availability_zone_id()?.to_owned(), score: s.score()? })
        };
        Ok(answer.spot_placement_scores().iter().filter_map(one).collect())
    }

    async fn zones(&self) -> Result<Vec<(String, String)>, Ec2Error> {
        let answer =
            self.client.describe_availability_zones().send().await.map_err(failed("DescribeAvailabilityZones"))?;
        let one = |z: &api::AvailabilityZone| Some((z.zone_id()?.to_owned(), z.zone_name()?.to_owned()));
        Ok(answer.availability_zones().iter().filter_map(one).collect())
    }

    async fn capacity_reservations(&self) -> Result<Vec<Reservation>, Ec2Error> {
        let active = filter("state", ["active".to_owned()]);
        let mut pages = self.client.describe_capacity_reservations().filters(active).into_paginator().send();
        let mut all = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed("DescribeCapacityReservations"))?;
            let plain = |r: &&api::CapacityReservation| {
                r.reservation_type().is_none_or(|t| *t == api::CapacityReservationType::Default)
                    && r.tenancy().is_none_or(|t| *t == api::CapacityReservationTenancy::Default)
                    && r.instance_platform().is_none_or(|p| p.as_str().starts_with("Linux"))
            };
            all.extend(page.capacity_reservations().iter().filter(plain).filter_map(|r| {
                Some(Reservation {
                    id: r.capacity_reservation_id()?.to_owned(),
                    instance_type: r.instance_type()?.to_owned(),
                    zone: r.availability_zone()?.to_owned(),
                    total: count(r.total_instance_count()),
                    available: count(r.available_instance_count()),
                })
            }));
        }
        Ok(all)
    }
}

//! The description of the API, from the code, and its pages.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

use super::problem::{ApiError, Code};
use crate::app::App;

/// The document without paths.
#[must_use]
pub fn head() -> OpenApi {
    let about = "Claims GPUs from a buffer that a planner keeps filled. Errors are problems (RFC 9457); their codes are \
                 stable, and `/errors/CODE` says what each means and what to do.";
    let info = InfoBuilder::new()
        .title("Pilotlight")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    OpenApiBuilder::new()
        .info(info)
        .components(Some(ComponentsBuilder::new().security_scheme("token", bearer).build()))
        .security(Some([SecurityRequirement::new::<_, _, &str>("token", [])]))
        .build()
}

/// The document as it is committed in `docs/openapi.json`.
#[must_use]
pub fn document() -> String {
    text(super::api().split_for_parts().1)
}

/// Its text.
pub fn text(document: OpenApi) -> String {
    let mut document = document;
    name_operations(&mut document);
    // A document made of strings and maps always has a JSON text.
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Gives each operation a name of its own: what it does and to what, `list_claims`. Handlers of different things have the
/// same names in the code.
fn name_operations(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let thing = path.trim_start_matches("/v1").split('/').find(|s| !s.is_empty()).unwrap_or("").to_owned();
        for operation in [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten() {
            let verb = operation.operation_id.take().unwrap_or_default();
            let name = if verb == thing { verb } else { format!("{verb}_{thing}") };
            operation.operation_id = Some(name.replace('-', "_"));
        }
    }
}

/// `/openapi.json`, a page that shows it, and the pages of the error codes.
pub fn pages(document: &Arc<str>) -> Router<Arc<App>> {
    let json = Arc::clone(document);
    let page = move || {
        let json = Arc::clone(&json);
        async move { ([(header::CONTENT_TYPE, "application/json")], json.to_string()) }
    };
    Router::new()
        .route("/openapi.json", get(page))
        .route("/docs", get(|| async { axum::response::Html(include_str!("docs.html")) }))
        .route("/errors/{code}", get(error_page))
}

async fn error_page(Path(code): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let known = Code::ALL.iter().find(|c| c.name() == code);
    let known = known.ok_or_else(|| ApiError::new(Code::NotFound, format!("there is no error code '{code}'")))?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], known.page()))
}

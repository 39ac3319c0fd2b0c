//! What EC2's error codes mean for us.

use super::ec2::Ec2Error;
use fleet::cloud::ErrorKind;

use crate::provider::ProviderError;

/// Codes by meaning. Sources: the error code list of the Amazon EC2 API reference; the lists that Karpenter
/// (`pkg/errors`) and AWS ParallelCluster (`slurm_resources.py`) act on.
const CODES: &[(ErrorKind, &[&str])] = &[
    (
        ErrorKind::Capacity,
        &[
            "InsufficientInstanceCapacity",
            "InsufficientHostCapacity",
            "InsufficientReservedInstanceCapacity",
            "InsufficientCapacity",
            "InsufficientVolumeCapacity",
            "UnfulfillableCapacity",
            "ReservationCapacityExceeded",
            "CapacityReservationNotAvailable",
            // The type is not sold in that zone, or not now.
            "Unsupported",
        ],
    ),
    (
        ErrorKind::Quota,
        &[
            "VcpuLimitExceeded",
            "InstanceLimitExceeded",
            "MaxSpotInstanceCountExceeded",
            "SpotInstanceCountLimitExceeded",
            "MaxSpotFleetRequestCountExceeded",
            "FleetLimitExceeded",
            "ResourceLimitExceeded",
            "VolumeLimitExceeded",
            "MaxIOPSLimitExceeded",
            "AddressLimitExceeded",
            "NetworkInterfaceLimitExceeded",
            "InsufficientFreeAddressesInSubnet",
        ],
    ),
    (
        ErrorKind::Throttled,
        &[
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "RequestThrottled",
            "RequestThrottledException",
            "EC2ThrottledException",
            "TooManyRequestsException",
            "SlowDown",
        ],
    ),
    (ErrorKind::Price, &["SpotMaxPriceTooLow", "InvalidSpotPrice"]),
    (
        ErrorKind::Authorisation,
        &[
            "AuthFailure",
            "UnauthorizedOperation",
            "AccessDenied",
            "AccessDeniedException",
            "OptInRequired",
            "PendingVerification",
            "Blocked",
            "InvalidClientTokenId",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "MissingAuthenticationToken",
            "UnrecognizedClientException",
            "ExpiredToken",
            "ExpiredTokenException",
            "RequestExpired",
        ],
    ),
    (ErrorKind::Gone, &["InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"]),
    (
        ErrorKind::Transient,
        &[
            "InternalError",
            "InternalFailure",
            "ServiceUnavailable",
            "Unavailable",
            "RequestTimeout",
            "RequestTimeoutException",
            "IncorrectInstanceState",
            "IncorrectState",
            // An earlier call with this token, made with another image or subnet, may have launched.
            "IdempotentParameterMismatch",
        ],
    ),
];

/// What a code means. A code that is not in the table is something wrong with the request where EC2 refused it, and
/// anything at all where it did not answer as such.
pub(super) fn kind_of(code: Option<&str>, refused: bool) -> ErrorKind {
    let known = code.and_then(|code| CODES.iter().find(|(_, codes)| codes.contains(&code)));
    match known {
        Some((kind, _)) => *kind,
        None if refused => ErrorKind::Configuration,
        None => ErrorKind::Transient,
    }
}

impl From<Ec2Error> for ProviderError {
    fn from(error: Ec2Error) -> Self {
        let kind = kind_of(error.code.as_deref(), error.refused);
        Self { kind, what: error.to_string(), source: Some(Box::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_meaning() {
        let mut seen = std::collections::BTreeSet::new();
        for (_, codes) in CODES {
            for code in *codes {
                assert!(seen.insert(code), "{code} is listed twice");
            }
        }
        assert_eq!(kind_of(Some("InsufficientInstanceCapacity"), true), ErrorKind::Capacity);
        assert_eq!(kind_of(Some("VcpuLimitExceeded"), true), ErrorKind::Quota);
        assert_eq!(kind_of(Some("InvalidAMIID.NotFound"), true), ErrorKind::Configuration);
        assert_eq!(kind_of(None, false), ErrorKind::Transient, "no answer says nothing");
        assert_eq!(kind_of(Some("InternalError"), false), ErrorKind::Transient);
    }
}

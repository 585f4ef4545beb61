//! The closed list of reasons in a ModelDeployment's conditions.

pub(crate) const INVALID_SPEC: &str = "InvalidSpec";
pub(crate) const SECRET_NOT_FOUND: &str = "SecretNotFound";
pub(crate) const VOLUME_NOT_FOUND: &str = "VolumeNotFound";
pub(crate) const DOWNLOADING: &str = "Downloading";
pub(crate) const DOWNLOAD_STALLED: &str = "DownloadStalled";
pub(crate) const DOWNLOAD_FAILED: &str = "DownloadFailed";
pub(crate) const DIGEST_MISMATCH: &str = "DigestMismatch";
/// Reasons for which a revision is given up because its model file cannot be had.
pub(crate) const OF_DOWNLOADS: [&str; 3] = [DOWNLOAD_STALLED, DOWNLOAD_FAILED, DIGEST_MISMATCH];
pub(crate) const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
pub(crate) const INSUFFICIENT_ACCELERATORS: &str = "InsufficientAccelerators";
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
pub(crate) const POD_NOT_CREATED: &str = "PodNotCreated";
pub(crate) const MODEL_LOAD_FAILED: &str = "ModelLoadFailed";
pub(crate) const OUT_OF_MEMORY: &str = "OutOfMemory";
pub(crate) const LOADING: &str = "Loading";
pub(crate) const STOPPING_PREVIOUS: &str = "StoppingPrevious";
pub(crate) const SCALED_TO_ZERO: &str = "ScaledToZero";
pub(crate) const REPLICAS_NOT_READY: &str = "ReplicasNotReady";
pub(crate) const SERVING: &str = "Serving";
pub(crate) const NOT_SERVING: &str = "NotServing";
pub(crate) const PROVIDER_UNREACHABLE: &str = "ProviderUnreachable";
pub(crate) const PROVIDER_REFUSES: &str = "ProviderRefuses";
pub(crate) const CHECKING_PROVIDER: &str = "CheckingProvider";
pub(crate) const ROLLED_BACK: &str = "RolledBack";
pub(crate) const SUSPENDED: &str = "Suspended";
pub(crate) const ACCEPTED: &str = "Accepted";
pub(crate) const DONE: &str = "Done";
pub(crate) const FINE: &str = "Fine";
pub(crate) const MOUNTED: &str = "Mounted";
pub(crate) const CACHED: &str = "Cached";
pub(crate) const EXTERNAL: &str = "External";
pub(crate) const ROLLING_OUT: &str = "RollingOut";
pub(crate) const UP_TO_DATE: &str = "UpToDate";

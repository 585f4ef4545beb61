//! Defaults of built-in kinds, for the fields that the operator and the simulated controllers meet.

use serde_json::{Value, json};

/// Fills in what the server fills in. `fresh` is a number for what the server makes up, such as a cluster address.
pub fn fill(kind: &str, object: &mut Value, fresh: u64) {
    match kind {
        "Deployment" => {
            let spec = &mut object["spec"];
            set(spec, "replicas", json!(1));
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "progressDeadlineSeconds", json!(600));
            set(spec, "strategy", json!({}));
            set(&mut spec["strategy"], "type", json!("RollingUpdate"));
            if spec["strategy"]["type"] == "RollingUpdate" {
                set(&mut spec["strategy"], "rollingUpdate", json!({}));
                set(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
                set(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
            }
            template(&mut spec["template"]);
        }
        "ReplicaSet" => {
            set(&mut object["spec"], "replicas", json!(1));
            template(&mut object["spec"]["template"]);
        }
        "Job" => job(object),
        "Pod" => {
            pod(&mut object["spec"]);
            set(&mut object["spec"], "enableServiceLinks", json!(true));
        }
        "Service" => service(&mut object["spec"], fresh),
        "Secret" => set(object, "type", json!("Opaque")),
        "PersistentVolumeClaim" => {
            set(&mut object["spec"], "volumeMode", json!("Filesystem"));
            set(&mut object["spec"], "storageClassName", json!("standard"));
            if let Some(storage) = object.pointer_mut("/spec/resources/requests/storage") {
                canonical_quantity(storage);
            }
        }
        "RoleBinding" => {
            set(&mut object["roleRef"], "apiGroup", json!("rbac.authorization.k8s.io"));
        }
        _ => {}
    }
}

fn job(object: &mut Value) {
    let uid = object["metadata"]["uid"].clone();
    let name = object["metadata"]["name"].clone();
    let spec = &mut object["spec"];
    if spec["completionMode"] != "Indexed" {
        set(spec, "completions", json!(1));
    }
    for (field, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        set(spec, field, value);
    }
    if spec.get("podFailurePolicy").is_some() {
        spec["podReplacementPolicy"] = json!("Failed");
    }
    set(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    let labels = &mut spec["template"]["metadata"]["labels"];
    for prefix in ["batch.kubernetes.io/", ""] {
        labels[format!("{prefix}controller-uid")] = uid.clone();
        labels[format!("{prefix}job-name")] = name.clone();
    }
    template(&mut spec["template"]);
    let labels = spec["template"]["metadata"]["labels"].clone();
    set(&mut object["metadata"], "labels", labels);
}

fn service(spec: &mut Value, fresh: u64) {
    set(spec, "type", json!("ClusterIP"));
    let address = json!(format!("127.96.{}.{}", fresh / 250 % 250 + 1, fresh % 250 + 1));
    set(spec, "clusterIP", address);
    if spec.get("clusterIPs").is_none() {
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
    }
    for (field, value) in [
        ("sessionAffinity", json!("None")),
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("internalTrafficPolicy", json!("Cluster")),
    ] {
        set(spec, field, value);
    }
    for port in items(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
}

fn template(template: &mut Value) {
    pod(&mut template["spec"]);
}

fn pod(spec: &mut Value) {
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
    ] {
        set(spec, field, value);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        set(spec, "serviceAccount", account);
    }
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            self::container(container);
        }
    }
    for volume in items(spec, "volumes") {
        for (source, field) in [("configMap", "defaultMode"), ("secret", "defaultMode"), ("projected", "defaultMode")] {
            if let Some(inner) = volume.get_mut(source) {
                set(inner, field, json!(420));
            }
        }
        for source in volume.get_mut("projected").map(|inner| items(inner, "sources")).unwrap_or_default() {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
        }
    }
}

fn container(container: &mut Value) {
    let image = container["image"].as_str().unwrap_or_default();
    let latest = image.rsplit('/').next().is_some_and(|last| !last.contains(':') || last.ends_with(":latest"));
    set(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    for port in items(container, "ports") {
        set(port, "protocol", json!("TCP"));
    }
    for variable in items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set(field, "apiVersion", json!("v1"));
        }
    }
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        if let Some(probe) = container.get_mut(name) {
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                set(probe, field, json!(value));
            }
            if let Some(get) = probe.get_mut("httpGet") {
                set(get, "scheme", json!("HTTP"));
                set(get, "path", json!("/"));
            }
        }
    }
    if let Some(get) = container.pointer_mut("/lifecycle/preStop/httpGet") {
        set(get, "scheme", json!("HTTP"));
    }
    for list in ["limits", "requests"] {
        for (_, quantity) in container["resources"].get_mut(list).and_then(Value::as_object_mut).into_iter().flatten() {
            canonical_quantity(quantity);
        }
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if object.get(field).is_none_or(Value::is_null) {
        object[field] = value;
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> Vec<&'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).map(|all| all.iter_mut().collect()).unwrap_or_default()
}

/// Writes a quantity as the server gives it back: `1000m` as `1`, `1024Mi` as `1Gi`, `0.5` as `500m`.
pub fn canonical_quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let binary = ["", "Ki", "Mi", "Gi", "Ti"];
    if let (Some(step), Ok(mut number)) = (binary.iter().position(|unit| *unit == suffix), number.parse::<u64>()) {
        let mut step = step;
        while step > 0 && step + 1 < binary.len() && number != 0 && number % 1024 == 0 {
            number /= 1024;
            step += 1;
        }
        *value = json!(format!("{number}{}", binary[step]));
    } else if let (true, Ok(number)) = (suffix == "m" || suffix.is_empty(), number.parse::<f64>()) {
        let milli = if suffix == "m" { number } else { number * 1000.0 };
        let text = if milli % 1000.0 == 0.0 { format!("{}", milli / 1000.0) } else { format!("{milli}m") };
        *value = json!(text);
    }
}

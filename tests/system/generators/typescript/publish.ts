// Publishes one message of each type, then all of them in one batch, then one that is not valid, to the service whose
// URL is the argument. Prints the answers as JSON. Only required fields are set, so each optional one may be left out.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.ts";

type Schemas = components["schemas"];

const event: Schemas["EventData"] = {
  id: 1,
  event_id: 1,
  batch_id: "batch-1",
  camera_id: "front_door",
  risk_score: 82,
  risk_level: "high",
  summary: "A person at the door",
  reasoning: "Nobody is expected",
};
const serviceStatus: Schemas["ServiceStatusData"] = { service: "detector", status: "restarting" };
const sceneChange: Schemas["SceneChangeData"] = {
  id: 2,
  camera_id: "backyard",
  detected_at: "2026-03-14T22:40:02Z",
  change_type: "view_blocked",
  similarity_score: 0.21,
};
const cameraStatus: Schemas["CameraStatusData"] = {
  event_type: "camera.offline",
  camera_id: "driveway",
  camera_name: "Driveway",
  status: "offline",
  timestamp: "2026-03-14T22:40:30Z",
  previous_status: null,
};
const alert: Schemas["AlertData"] = {
  id: "alert-1",
  event_id: 1,
  severity: "high",
  status: "pending",
  dedup_key: "front_door",
  created_at: "2026-03-14T22:41:09Z",
  updated_at: "2026-03-14T22:41:09Z",
};
const deletedAlert: Schemas["AlertDeletedData"] = { id: "alert-1" };
const workerStatus: Schemas["WorkerStatusData"] = {
  event_type: "worker.error",
  worker_name: "detection-2",
  worker_type: "detection",
  timestamp: "2026-03-14T22:39:44Z",
  metadata: { gpu: "cuda:0", queue: [1, { depth: 17 }] },
};
const detection: Schemas["DetectionNewData"] = {
  detection_id: 3,
  batch_id: "batch-1",
  camera_id: "front_door",
  label: "person",
  confidence: 0.94,
  timestamp: "2026-03-14T22:38:51Z",
};
const detections: Schemas["DetectionBatchData"] = {
  batch_id: "batch-1",
  camera_id: "front_door",
  detection_ids: [3, 4],
  detection_count: 2,
  started_at: "2026-03-14T22:38:51Z",
  closed_at: "2026-03-14T22:40:21Z",
};
const infrastructureAlert: Schemas["InfrastructureAlertData"] = {
  alertname: "DiskAlmostFull",
  status: "firing",
  fingerprint: "b1946ac92492d234",
};
const summaryUpdate: Schemas["SummaryUpdateData"] = { daily: null };

const batch: Schemas["BatchBody"] = [
  { type: "event", data: event },
  { type: "service_status", data: serviceStatus, timestamp: "2026-03-14T22:39:47Z" },
  { type: "scene_change", data: sceneChange },
  { type: "camera_status", data: cameraStatus },
  { type: "alert_created", data: alert },
  { type: "alert_updated", data: alert },
  { type: "alert_acknowledged", data: alert },
  { type: "alert_resolved", data: alert },
  { type: "alert_dismissed", data: alert },
  { type: "alert_deleted", data: deletedAlert },
  { type: "worker_status", data: workerStatus },
  { type: "detection.new", data: detection },
  { type: "detection.batch", data: detections },
  { type: "infrastructure_alert", data: infrastructureAlert },
  { type: "summary_update", data: summaryUpdate },
];

interface Answer<T> {
  data?: T;
  error?: Schemas["Problem"];
}

/** Return the answer of a publish; throw the detail of the problem document if it was refused. */
function accepted<T>({ data, error }: Answer<T>): T {
  if (data === undefined) throw new Error(error?.detail);
  return data;
}

const client = createClient<paths>({ baseUrl: process.argv[2] });

const receipts: Schemas["Receipt"][] = [
  accepted(await client.POST("/broadcast/event", { body: event })),
  accepted(await client.POST("/broadcast/service-status", { body: serviceStatus })),
  accepted(await client.POST("/broadcast/scene-change", { body: { type: "scene_change", data: sceneChange } })),
  accepted(await client.POST("/broadcast/camera-status", { body: cameraStatus })),
  accepted(await client.POST("/broadcast/alert/created", { body: alert })),
  accepted(await client.POST("/broadcast/alert/updated", { body: alert })),
  accepted(await client.POST("/broadcast/alert/acknowledged", { body: alert })),
  accepted(await client.POST("/broadcast/alert/resolved", { body: alert })),
  accepted(await client.POST("/broadcast/alert/dismissed", { body: alert })),
  accepted(await client.POST("/broadcast/alert/deleted", { body: deletedAlert })),
  accepted(await client.POST("/broadcast/worker-status", { body: workerStatus })),
  accepted(await client.POST("/broadcast/detection/new", { body: detection })),
  accepted(await client.POST("/broadcast/detection/batch", { body: detections })),
  accepted(await client.POST("/broadcast/infrastructure-alert", { body: infrastructureAlert })),
  accepted(await client.POST("/broadcast/summary-update", { body: summaryUpdate })),
  ...accepted(await client.POST("/broadcast/batch", { body: batch })).receipts,
];

const refused = await client.POST("/broadcast/event", { body: { ...event, risk_score: 101 } });
const [fieldError] = refused.error?.errors ?? [];

console.log(
  JSON.stringify({
    sequences: receipts.map((receipt) => receipt.sequence),
    epochs: receipts.map((receipt) => receipt.epoch),
    problem: { status: refused.error?.status, field: fieldError?.field, message: fieldError?.message },
  }),
);

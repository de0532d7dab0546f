// Publishes one message of each type, then all of them in one batch, then one that is not valid, to the service whose
// URL is the argument. Prints the answers as JSON. Only required fields are set, so each optional one may be left out.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
)

type problem struct {
	Status  int64  `json:"status"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

type answers struct {
	Sequences []int64  `json:"sequences"`
	Epochs    []string `json:"epochs"`
	Problem   problem  `json:"problem"`
}

func main() {
	client := must(NewClientWithResponses(os.Args[1]))
	ctx := context.Background()

	event := EventData{Id: 1, EventId: 1, BatchId: "batch-1", CameraId: "front_door", RiskScore: 82,
		RiskLevel: RiskLevelHigh, Summary: "A person at the door", Reasoning: "Nobody is expected"}
	serviceStatus := ServiceStatusData{Service: new("detector"), Status: ServiceStatusValueRestarting}
	sceneChange := SceneChangeData{Id: 2, CameraId: "backyard", DetectedAt: "2026-03-14T22:40:02Z",
		ChangeType: "view_blocked", SimilarityScore: 0.21}
	cameraStatus := CameraStatusData{EventType: CameraOffline, CameraId: "driveway", CameraName: "Driveway",
		Status: CameraStatusValueOffline, Timestamp: "2026-03-14T22:40:30Z"}
	alert := AlertData{Id: "alert-1", EventId: 1, Severity: RiskLevelHigh, Status: Pending, DedupKey: "front_door",
		CreatedAt: "2026-03-14T22:41:09Z", UpdatedAt: "2026-03-14T22:41:09Z"}
	deletedAlert := AlertDeletedData{Id: "alert-1"}
	workerStatus := WorkerStatusData{EventType: "worker.error", WorkerName: "detection-2", WorkerType: Detection,
		Timestamp: "2026-03-14T22:39:44Z", Metadata: &map[string]any{"gpu": "cuda:0", "queue": []any{1, 17.5}}}
	detection := DetectionNewData{DetectionId: 3, BatchId: "batch-1", CameraId: "front_door", Label: "person",
		Confidence: 0.94, Timestamp: "2026-03-14T22:38:51Z"}
	detections := DetectionBatchData{BatchId: "batch-1", CameraId: "front_door", DetectionIds: []int64{3, 4},
		DetectionCount: 2, StartedAt: "2026-03-14T22:38:51Z", ClosedAt: "2026-03-14T22:40:21Z"}
	infrastructureAlert := InfrastructureAlertData{Alertname: "DiskAlmostFull", Status: Firing,
		Fingerprint: "b1946ac92492d234"}
	summaryUpdate := SummaryUpdateData{}

	var receipts []Receipt
	{
		body := union((*EventBody).FromEventData, event)
		answer := must(client.BroadcastEventWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*ServiceStatusBody).FromServiceStatusData, serviceStatus)
		answer := must(client.BroadcastServiceStatusWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*SceneChangeBody).FromSceneChangeData, sceneChange)
		answer := must(client.BroadcastSceneChangeWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*CameraStatusBody).FromCameraStatusData, cameraStatus)
		answer := must(client.BroadcastCameraStatusWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertCreatedBody).FromAlertData, alert)
		answer := must(client.BroadcastAlertCreatedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertUpdatedBody).FromAlertData, alert)
		answer := must(client.BroadcastAlertUpdatedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertAcknowledgedBody).FromAlertData, alert)
		answer := must(client.BroadcastAlertAcknowledgedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertResolvedBody).FromAlertData, alert)
		answer := must(client.BroadcastAlertResolvedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertDismissedBody).FromAlertData, alert)
		answer := must(client.BroadcastAlertDismissedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*AlertDeletedBody).FromAlertDeletedData, deletedAlert)
		answer := must(client.BroadcastAlertDeletedWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*WorkerStatusBody).FromWorkerStatusData, workerStatus)
		answer := must(client.BroadcastWorkerStatusWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*DetectionNewBody).FromDetectionNewData, detection)
		answer := must(client.BroadcastDetectionNewWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*DetectionBatchBody).FromDetectionBatchData, detections)
		answer := must(client.BroadcastDetectionBatchWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*InfrastructureAlertBody).FromInfrastructureAlertData, infrastructureAlert)
		answer := must(client.BroadcastInfrastructureAlertWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	{
		body := union((*SummaryUpdateBody).FromSummaryUpdateData, summaryUpdate)
		answer := must(client.BroadcastSummaryUpdateWithResponse(ctx, nil, body))
		receipts = append(receipts, accepted(answer.JSON202, answer.Body))
	}
	batch := BatchBody{
		union((*BatchItem).FromEventMessage, EventMessage{Type: Event, Data: event}),
		union((*BatchItem).FromServiceStatusMessage, ServiceStatusMessage{Type: ServiceStatus, Data: serviceStatus, Timestamp: new("2026-03-14T22:39:47Z")}),
		union((*BatchItem).FromSceneChangeMessage, SceneChangeMessage{Type: SceneChange, Data: sceneChange}),
		union((*BatchItem).FromCameraStatusMessage, CameraStatusMessage{Type: CameraStatus, Data: cameraStatus}),
		union((*BatchItem).FromAlertCreatedMessage, AlertCreatedMessage{Type: AlertCreated, Data: alert}),
		union((*BatchItem).FromAlertUpdatedMessage, AlertUpdatedMessage{Type: AlertUpdated, Data: alert}),
		union((*BatchItem).FromAlertAcknowledgedMessage, AlertAcknowledgedMessage{Type: AlertAcknowledged, Data: alert}),
		union((*BatchItem).FromAlertResolvedMessage, AlertResolvedMessage{Type: AlertResolved, Data: alert}),
		union((*BatchItem).FromAlertDismissedMessage, AlertDismissedMessage{Type: AlertDismissed, Data: alert}),
		union((*BatchItem).FromAlertDeletedMessage, AlertDeletedMessage{Type: AlertDeleted, Data: deletedAlert}),
		union((*BatchItem).FromWorkerStatusMessage, WorkerStatusMessage{Type: WorkerStatus, Data: workerStatus}),
		union((*BatchItem).FromDetectionNewMessage, DetectionNewMessage{Type: DetectionNew, Data: detection}),
		union((*BatchItem).FromDetectionBatchMessage, DetectionBatchMessage{Type: DetectionBatch, Data: detections}),
		union((*BatchItem).FromInfrastructureAlertMessage, InfrastructureAlertMessage{Type: InfrastructureAlert, Data: infrastructureAlert}),
		union((*BatchItem).FromSummaryUpdateMessage, SummaryUpdateMessage{Type: SummaryUpdate, Data: summaryUpdate}),
	}
	answer := must(client.BroadcastBatchWithResponse(ctx, nil, batch))
	receipts = append(receipts, accepted(answer.JSON202, answer.Body).Receipts...)

	event.RiskScore = 101
	refused := must(client.BroadcastEventWithResponse(ctx, nil, union((*EventBody).FromEventData, event)))
	document := refused.ApplicationproblemJSON400
	if document == nil || document.Errors == nil {
		log.Fatalf("not a problem document with errors: %s", refused.Body)
	}
	fieldError := (*document.Errors)[0]
	result := answers{Problem: problem{document.Status, fieldError.Field, fieldError.Message}}
	for _, receipt := range receipts {
		result.Sequences = append(result.Sequences, receipt.Sequence)
		result.Epochs = append(result.Epochs, receipt.Epoch)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

// union returns a oneOf that holds a value; from is the method that sets it.
func union[Union, Value any](from func(*Union, Value) error, value Value) Union {
	var made Union
	if err := from(&made, value); err != nil {
		log.Fatal(err)
	}
	return made
}

// accepted returns the answer of a publish; it ends the program with the body if the publish was refused.
func accepted[Answer any](answer *Answer, body []byte) Answer {
	if answer == nil {
		log.Fatalf("refused: %s", body)
	}
	return *answer
}

func must[Value any](value Value, err error) Value {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

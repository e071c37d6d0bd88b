// Package differential compares what the HPA controller of Kubernetes makes of random scenarios with what
// `operator replay` makes of them. This file has the exchange format, which docs/replay.md describes; it
// decides nothing.
package differential

import (
	"encoding/json"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Scenario is one line of input.
type Scenario struct {
	Name            string          `json:"name"`
	Spec            Spec            `json:"spec"`
	InitialReplicas int32           `json:"initialReplicas"`
	Controller      *Controller     `json:"controller,omitempty"`
	FeatureGates    map[string]bool `json:"featureGates,omitempty"`
	Steps           []Step          `json:"steps"`
}

// Spec is the part of a HorizontalPodAutoscaler's spec that counts here.
type Spec struct {
	MinReplicas *int32                                         `json:"minReplicas,omitempty"`
	MaxReplicas int32                                          `json:"maxReplicas"`
	Metrics     []Metric                                       `json:"metrics"`
	Behavior    *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
}

// Metric is an external metric with its target.
type Metric struct {
	Type   string `json:"type"`
	Target Target `json:"target"`
}

// Target is where a metric should be.
type Target struct {
	Type  autoscalingv2.MetricTargetType `json:"type"`
	Value resource.Quantity              `json:"value"`
}

// Controller holds flags of kube-controller-manager.
type Controller struct {
	Tolerance                     *float64 `json:"tolerance,omitempty"`
	DownscaleStabilizationSeconds *int64   `json:"downscaleStabilizationSeconds,omitempty"`
}

// Step is one reconciliation.
type Step struct {
	// T is in seconds since the scenario's begin.
	T float64 `json:"t"`
	// Metrics has the values of each metric's items as numbers or strings; nil is an error.
	Metrics [][]json.RawMessage `json:"metrics"`
	// StatusReplicas is how many pods exist; by default as many as are asked for.
	StatusReplicas *int32 `json:"statusReplicas,omitempty"`
	// ReadyPods is how many of them are ready; by default all.
	ReadyPods *int32 `json:"readyPods,omitempty"`
	// SpecReplicas is what somebody else wrote just before.
	SpecReplicas *int32 `json:"specReplicas,omitempty"`
}

// Result is one line of output.
type Result struct {
	Name     string   `json:"name"`
	Replicas []int32  `json:"replicas"`
	Reasons  []string `json:"reasons"`
	Error    string   `json:"error,omitempty"`
}

func (s *Scenario) tolerance() float64 {
	if s.Controller != nil && s.Controller.Tolerance != nil {
		return *s.Controller.Tolerance
	}
	return 0.1
}

func (s *Scenario) downscaleStabilizationSeconds() int64 {
	if s.Controller != nil && s.Controller.DownscaleStabilizationSeconds != nil {
		return *s.Controller.DownscaleStabilizationSeconds
	}
	return 300
}

// items are a metric's values, and false for an error.
func (s *Step) items(metric int) ([]resource.Quantity, bool) {
	if metric >= len(s.Metrics) || len(s.Metrics[metric]) == 0 {
		return nil, false
	}
	values := make([]resource.Quantity, len(s.Metrics[metric]))
	for i, text := range s.Metrics[metric] {
		if err := json.Unmarshal(text, &values[i]); err != nil {
			return nil, false
		}
	}
	return values, true
}

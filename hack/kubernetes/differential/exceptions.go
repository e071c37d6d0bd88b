package differential

// Where we mean to differ from the HPA. Each is a predicate on the scenario and what the HPA made of it; how
// often one is needed is counted and printed.

import (
	"math"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// exception says whether a step is one in which we mean to differ. before has the replicas that the HPA found.
type exception struct {
	name  string
	holds func(s *Scenario, step int, before int32) bool
}

var exceptions = []exception{
	{
		// A quantity whose thousandths do not fit into 64 bits reads as 0, or as its lowest bits.
		name: "the HPA misreads a quantity beyond 2^63 thousandths; we take it for the largest",
		holds: func(s *Scenario, step int, _ int32) bool {
			for i := range s.Spec.Metrics {
				items, _ := s.Steps[step].items(i)
				sum := 0.0
				for _, item := range items {
					sum += math.Abs(item.AsApproximateFloat64())
				}
				if sum*1000 >= math.MaxInt64 {
					return true
				}
			}
			return false
		},
	},
	{
		// The conversion to int32 is not guarded; on amd64 it gives the smallest number, and so the minimum.
		name: "the HPA scales a Value metric down that asks for more than 2^31-1 replicas; we scale up",
		holds: func(s *Scenario, step int, before int32) bool {
			for i, metric := range s.Spec.Metrics {
				items, ok := s.Steps[step].items(i)
				if !ok || metric.Target.Type != autoscalingv2.ValueMetricType {
					continue
				}
				ratio := float64(sum(items)) / float64(metric.Target.Value.MilliValue())
				ready := before
				if status := s.Steps[step].StatusReplicas; status != nil {
					ready = *status
				}
				if given := s.Steps[step].ReadyPods; given != nil {
					ready = *given
				}
				if before == 0 {
					ready = 1
				}
				if math.Abs(ratio)*float64(ready) > math.MaxInt32 {
					return true
				}
			}
			return false
		},
	},
}

func sum(items []resource.Quantity) int64 {
	var total int64
	for _, item := range items {
		total += item.MilliValue()
	}
	return total
}

// excuse names the exception that holds in step at or before, or nothing.
func excuse(s *Scenario, at int, real []int32) string {
	before := s.InitialReplicas
	for step := 0; step <= at && step < len(s.Steps); step++ {
		if step > 0 {
			before = real[step-1]
		}
		if given := s.Steps[step].SpecReplicas; given != nil {
			before = *given
		}
		for _, e := range exceptions {
			if e.holds(s, step, before) {
				return e.name
			}
		}
	}
	return ""
}

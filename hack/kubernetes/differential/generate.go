package differential

// Makes random scenarios from a seed. The same seed and number give the same scenario.

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// generator draws one scenario.
type generator struct {
	*rand.Rand
	scenario Scenario
	// What the load asks for, in replicas; it wanders.
	wanted []float64
	// How many steps a metric still fails for.
	failing []int
}

// Generate makes scenario number i of a seed.
func Generate(seed uint64, i int) *Scenario {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
	g.scenario.Name = fmt.Sprintf("%d/%d", seed, i)
	g.spec()
	g.flags()
	g.scenario.InitialReplicas = g.replicas()
	absurd := g.chance(0.01)
	at := 0.0
	for range 4 + g.IntN(40) {
		g.scenario.Steps = append(g.scenario.Steps, g.step(at, absurd))
		at += g.interval()
	}
	return &g.scenario
}

func (g *generator) chance(p float64) bool { return g.Float64() < p }

func one[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func pointer[T any](v T) *T { return &v }

// replicas are mostly within the bounds, and mostly few.
func (g *generator) replicas() int32 {
	low := int32(1)
	if g.scenario.Spec.MinReplicas != nil {
		low = *g.scenario.Spec.MinReplicas
	}
	switch {
	case g.chance(0.05):
		return 0
	case g.chance(0.1):
		return g.Int32N(g.scenario.Spec.MaxReplicas*2 + 2)
	}
	return low + g.Int32N(g.scenario.Spec.MaxReplicas-low+1)
}

func (g *generator) spec() {
	spec := &g.scenario.Spec
	low := int32(1)
	if !g.chance(0.1) {
		low = one[int32](g, 0, 1, 1, 1, 1, 2, 2, 3, 5, 10)
		spec.MinReplicas = &low
	}
	spec.MaxReplicas = max(low, 1) + one[int32](g, 0, 3, 8, 20, g.Int32N(100), g.Int32N(300))
	for range one(g, 1, 1, 1, 2, 2, 3) {
		spec.Metrics = append(spec.Metrics, Metric{Type: "External", Target: Target{
			Type: one(g, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType, autoscalingv2.AverageValueMetricType),
			Value: resource.MustParse(one(g, "100", "100", "1", "30", "7", "500m", "3.3", "0.1", "1k", "10Mi", "1234567",
				"33.333333", fmt.Sprint(1+g.IntN(1000)), fmt.Sprintf("%dm", 1+g.IntN(100000)))),
		}})
		g.wanted = append(g.wanted, 1+g.Float64()*float64(spec.MaxReplicas)*1.3)
	}
	g.failing = make([]int, len(spec.Metrics))
	if g.chance(0.6) {
		spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
		if g.chance(0.75) {
			spec.Behavior.ScaleUp = g.rules()
		}
		if g.chance(0.75) {
			spec.Behavior.ScaleDown = g.rules()
		}
	}
}

func (g *generator) rules() *autoscalingv2.HPAScalingRules {
	rules := &autoscalingv2.HPAScalingRules{}
	if g.chance(0.7) {
		rules.StabilizationWindowSeconds = pointer(one[int32](g, 0, 0, 15, 30, 45, 60, 120, 300, 3600, g.Int32N(3601)))
	}
	if g.chance(0.7) {
		rules.SelectPolicy = pointer(one(g, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MaxChangePolicySelect,
			autoscalingv2.MinChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect))
	}
	if g.chance(0.75) {
		for range one(g, 1, 1, 2, 2, 3) {
			policy := autoscalingv2.HPAScalingPolicy{PeriodSeconds: one[int32](g, 1, 5, 15, 15, 30, 60, 60, 120, 300, 1800, 1+g.Int32N(1800))}
			if g.chance(0.5) {
				policy.Type, policy.Value = autoscalingv2.PodsScalingPolicy, one[int32](g, 1, 2, 4, 10, 1+g.Int32N(50))
			} else {
				policy.Type, policy.Value = autoscalingv2.PercentScalingPolicy, one[int32](g, 1, 10, 25, 50, 90, 100, 100, 200, 900, 1+g.Int32N(1000))
			}
			rules.Policies = append(rules.Policies, policy)
		}
	}
	if g.chance(0.15) {
		rules.Tolerance = pointer(resource.MustParse(one(g, "0", "0.01", "50m", "0.1", "0.25", "0.5", "1", "333m")))
	}
	return rules
}

func (g *generator) flags() {
	if g.chance(0.25) {
		g.scenario.Controller = &Controller{}
		if g.chance(0.7) {
			g.scenario.Controller.Tolerance = pointer(one[float64](g, 0, 0.01, 0.05, 0.1, 0.2, 0.33, 0.5))
		}
		if g.chance(0.7) {
			g.scenario.Controller.DownscaleStabilizationSeconds = pointer(one[int64](g, 0, 1, 15, 30, 60, 300, 600))
		}
	}
	gates := map[string]bool{}
	if m := g.scenario.Spec.MinReplicas; m != nil && *m == 0 {
		gates["HPAScaleToZero"] = true
	}
	if g.chance(0.3) {
		gates["HPAConfigurableTolerance"] = g.chance(0.8)
	}
	if len(gates) > 0 {
		g.scenario.FeatureGates = gates
	}
}

// interval is in seconds: mostly the controller's own, and such as meet the ends of windows.
func (g *generator) interval() float64 {
	return one[float64](g, 15, 15, 15, 15, 15, 15, 15, 15, 1, 5, 14, 16, 30, 45, 60, 120, 299, 300, 301, 1800,
		1+float64(g.IntN(100)), float64(1+g.IntN(40000))/1000)
}

func (g *generator) step(at float64, absurd bool) Step {
	// In whole milliseconds, as the other side reads them.
	step := Step{T: float64(int64(at*1000+0.5)) / 1000}
	for i := range g.scenario.Spec.Metrics {
		step.Metrics = append(step.Metrics, g.values(i, absurd))
	}
	if g.chance(0.06) {
		step.SpecReplicas = pointer(g.replicas())
	}
	if g.chance(0.15) {
		step.StatusReplicas = pointer(g.replicas())
	}
	if g.chance(0.2) {
		step.ReadyPods = pointer(g.replicas())
		if step.StatusReplicas != nil {
			*step.ReadyPods = min(*step.ReadyPods, *step.StatusReplicas)
		}
	}
	return step
}

// values are the items of a metric, whose sum is what was drawn; nil is an error.
func (g *generator) values(metric int, absurd bool) []json.RawMessage {
	if g.failing[metric] == 0 && g.chance(0.04) {
		g.failing[metric] = one(g, 1, 1, 2, 5, 25)
	}
	if g.failing[metric] > 0 {
		g.failing[metric]--
		if g.chance(0.1) {
			return []json.RawMessage{}
		}
		return nil
	}
	if absurd && g.chance(0.2) {
		return []json.RawMessage{json.RawMessage(one(g, `"9E"`, `1e18`, `-5`, `"-1k"`, `"1n"`, `9007199254740993`, `"100P"`, `"9223372036854775807m"`, `1e-7`, `1e12`, `"8Ei"`))}
	}
	target := g.scenario.Spec.Metrics[metric].Target
	switch {
	case g.chance(0.2):
		g.wanted[metric] = g.Float64() * float64(g.scenario.Spec.MaxReplicas) * 1.3
	case g.chance(0.5):
		g.wanted[metric] *= 0.8 + 0.4*g.Float64()
	}
	wanted := g.wanted[metric]
	if g.chance(0.3) {
		wanted = float64(int(wanted + 0.5))
	}
	if target.Type == autoscalingv2.ValueMetricType {
		wanted = 2.2 * g.Float64()
		if g.chance(0.3) {
			wanted = 1
		}
	}
	// The edges of the usual tolerances, and just beside.
	wanted *= one[float64](g, 1, 1, 1, 1, 1, 1.1, 0.9, 1.1001, 0.8999, 1.2, 0.5, 1.05)
	if g.chance(0.05) {
		wanted = 0
	}
	total := target.Value.AsApproximateFloat64() * wanted
	var items []json.RawMessage
	for n := one[int](g, 1, 1, 1, 2, 3); n > 1; n-- {
		part := total * g.Float64()
		total -= part
		items = append(items, g.value(part))
	}
	return append(items, g.value(total))
}

func (g *generator) value(v float64) json.RawMessage {
	switch g.IntN(5) {
	case 0:
		return json.RawMessage(fmt.Sprintf(`"%dm"`, int64(v*1000)))
	case 1:
		return json.RawMessage(fmt.Sprintf(`"%d"`, int64(v)))
	case 2:
		return json.RawMessage(fmt.Sprintf(`%d`, int64(v+0.5)))
	case 3:
		return json.RawMessage(fmt.Sprintf(`"%.6f"`, v))
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

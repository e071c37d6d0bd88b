package differential

// Holds `operator replay` against the HPA controller, replica count by replica count. It needs the operator's
// binary and never passes without it.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	operator  = flag.String("operator", "", "the operator's binary")
	scenarios = flag.Int("scenarios", 3000, "how many scenarios to run")
	seed      = flag.Uint64("seed", 1, "which scenarios")
	file      = flag.String("file", "", "scenarios from a file of JSON lines instead of random ones")
	example   = flag.String("example", "", "a page whose first block of JSON is run in addition")
)

// At most so much of the scenarios may differ for the reasons in exceptions.go.
const exceptionsAllowed = 0.01

func TestOperatorReplayDecidesAsTheHPA(t *testing.T) {
	if *operator == "" {
		t.Fatal("-operator is missing: the path of the operator's binary")
	}
	quiet()
	cases := read(t)
	begun := time.Now()
	real := runAll(t, cases)
	took := time.Since(begun)
	begun = time.Now()
	ours := runOperator(t, cases)
	fmt.Printf("seed %d, %d scenarios: HPA controller %.1f s, operator replay %.1f s\n", *seed, len(cases), took.Seconds(), time.Since(begun).Seconds())
	steps, changes, excused, wrong := 0, 0, map[string]int{}, 0
	for i, s := range cases {
		steps += len(s.Steps)
		changes += changed(s, real[i])
		at := differs(real[i], ours[i].Replicas)
		if at < 0 {
			continue
		}
		if why := excuse(s, at, real[i]); why != "" {
			excused[why]++
			continue
		}
		if wrong++; wrong <= 5 {
			report(t, s, at, real[i], &ours[i])
		}
	}
	total := 0
	for _, e := range exceptions {
		fmt.Printf("exception, %d scenarios: %s\n", excused[e.name], e.name)
		total += excused[e.name]
	}
	fmt.Printf("%d steps, %d of them changed replicas; %d scenarios differ for a known reason, %d for none\n", steps, changes, total, wrong)
	if wrong > 0 {
		t.Fatalf("%d of %d scenarios differ", wrong, len(cases))
	}
	if float64(total) > exceptionsAllowed*float64(len(cases)) {
		t.Fatalf("%d of %d scenarios are exceptions: more than %v", total, len(cases), exceptionsAllowed)
	}
	if *file == "" && len(cases) >= 1000 {
		covered(t, ours)
	}
}

// covered fails if the scenarios did not reach what they are for.
func covered(t *testing.T, results []Result) {
	counts := map[string]int{}
	for _, r := range results {
		for _, reason := range r.Reasons {
			counts[reason]++
		}
	}
	for _, reason := range []string{
		"WithinTolerance", "MetricAboveTarget", "AllMetricsBelowTarget", "ScaleUpLimit", "ScaleDownLimit",
		"ScaleUpStabilized", "ScaleDownStabilized", "TooManyReplicas", "TooFewReplicas", "AboveMaximum", "BelowMinimum",
		"NoMetrics", "SomeMetricsMissing", "ScalingDisabled",
	} {
		fmt.Printf("  %7d steps: %s\n", counts[reason], reason)
		if counts[reason] < 10 {
			t.Errorf("only %d steps with the reason %s: the scenarios do not look at it", counts[reason], reason)
		}
	}
}

func read(t *testing.T) []*Scenario {
	var cases []*Scenario
	if *file == "" {
		for i := range *scenarios {
			cases = append(cases, Generate(*seed, i))
		}
	} else {
		cases = parse(t, readFile(t, *file))
	}
	if *example != "" {
		_, block, _ := bytes.Cut(readFile(t, *example), []byte("```json\n"))
		block, _, found := bytes.Cut(block, []byte("```"))
		if !found {
			t.Fatalf("%s has no block of JSON", *example)
		}
		cases = append(cases, parse(t, block)...)
	}
	return cases
}

func readFile(t *testing.T, path string) []byte {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parse(t *testing.T, text []byte) []*Scenario {
	var cases []*Scenario
	for _, line := range bytes.Split(bytes.TrimSpace(text), []byte("\n")) {
		s := &Scenario{}
		if err := json.Unmarshal(line, s); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, s)
	}
	return cases
}

// runAll runs the controller on every processor, first with the feature gate off and then on: it is global.
func runAll(t *testing.T, cases []*Scenario) [][]int32 {
	results := make([][]int32, len(cases))
	for _, gate := range []bool{false, true} {
		if err := setGate(gate); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		queue := make(chan int)
		for range goruntime.GOMAXPROCS(0) {
			group.Add(1)
			go func() {
				defer group.Done()
				for i := range queue {
					results[i] = runController(t, cases[i])
				}
			}()
		}
		for i, s := range cases {
			if s.FeatureGates["HPAConfigurableTolerance"] == gate {
				queue <- i
			}
		}
		close(queue)
		group.Wait()
	}
	return results
}

func runOperator(t *testing.T, cases []*Scenario) []Result {
	var input bytes.Buffer
	for _, s := range cases {
		line, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		input.Write(append(line, '\n'))
	}
	command := exec.Command(*operator, "replay")
	command.Stdin, command.Stderr = &input, os.Stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("operator replay: %v", err)
	}
	var results []Result
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("operator replay printed %s: %v", lines.Bytes(), err)
		}
		results = append(results, r)
	}
	if len(results) != len(cases) {
		t.Fatalf("operator replay gave %d lines for %d scenarios", len(results), len(cases))
	}
	for i, s := range cases {
		if results[i].Name != s.Name || len(results[i].Reasons) != len(s.Steps) {
			t.Fatalf("operator replay gave %+v for %s with %d steps", results[i], s.Name, len(s.Steps))
		}
	}
	return results
}

// changed counts the steps in which the controller wrote.
func changed(s *Scenario, replicas []int32) int {
	n, before := 0, s.InitialReplicas
	for i, after := range replicas {
		if s.Steps[i].SpecReplicas != nil {
			before = *s.Steps[i].SpecReplicas
		}
		if after != before {
			n++
		}
		before = after
	}
	return n
}

// differs is the first step whose replicas differ, or -1.
func differs(a, b []int32) int {
	if slices.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func report(t *testing.T, s *Scenario, at int, real []int32, ours *Result) {
	short := *s
	short.Steps = s.Steps[:min(at+1, len(s.Steps))]
	text, err := json.Marshal(short)
	if err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s differs at step %d\n  HPA      %v\n  operator %v\n  reasons  %v\n  %s", s.Name, at, real[:min(at+1, len(real))],
		ours.Replicas[:min(at+1, len(ours.Replicas))], ours.Reasons[:min(at+1, len(ours.Reasons))], text)
}

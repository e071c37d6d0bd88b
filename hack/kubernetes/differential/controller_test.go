package differential

// Runs a scenario through the HPA controller of Kubernetes itself, with its fake clients, on a virtual clock.
// Nothing of the controller is replaced: what it reads and writes are fakes, and each of its reconciliations
// is held in its first read of the scale until the scenario's time has come.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	scalefake "k8s.io/client-go/scale/fake"
	core "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	defaults "k8s.io/kubernetes/pkg/apis/autoscaling/v2"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	externalfake "k8s.io/metrics/pkg/client/external_metrics/fake"
)

const (
	namespace = "default"
	name      = "web"
	// Long enough that nothing is resynchronized within a scenario. Without any, the reflector waits on a
	// channel from outside the bubble, and its clock stands still.
	never = 100000 * time.Hour
	// How long the controller waits between reconciliations; the scenario's steps are further apart.
	resync = time.Microsecond
)

// quiet keeps the controller's log, and a back-off that sleeps by a clock shared between bubbles, out.
func quiet() {
	klog.SetLogger(logr.Discard())
	utilruntime.ErrorHandlers = nil
}

// world is what the controller's fakes show it.
type world struct {
	scenario *Scenario
	start    time.Time
	pods     cache.Indexer
	next     int
	step     *Step
	spec     int32
	replicas []int32
	done     chan struct{}
}

// runController gives the replicas after each step.
func runController(t *testing.T, s *Scenario) []int32 {
	w := &world{scenario: s, spec: s.InitialReplicas}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w.start, w.done = time.Now(), make(chan struct{})
		client := fake.NewSimpleClientset(w.hpa())
		factory := informers.NewSharedInformerFactory(client, never)
		hpas, pods := factory.Autoscaling().V2().HorizontalPodAutoscalers(), factory.Core().V1().Pods()
		w.pods = pods.Informer().GetIndexer()
		hpas.Informer()
		// Started first, so that the controller's handler does not ask for a resynchronization each second.
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		scales := &scalefake.FakeScaleClient{}
		scales.AddReactor("get", "*", func(core.Action) (bool, runtime.Object, error) { return w.getScale(ctx) })
		scales.AddReactor("update", "*", w.updateScale)
		external := &externalfake.FakeExternalMetricsClient{}
		external.AddReactor("list", "*", w.listMetric)
		kind := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
		mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{kind.GroupVersion()})
		mapper.Add(kind, meta.RESTScopeNamespace)
		controller := podautoscaler.NewHorizontalController(
			ctx, client.CoreV1(), scales, client.AutoscalingV2(), mapper,
			metrics.NewRESTMetricsClient(nil, nil, external), hpas, pods, resync,
			time.Duration(s.downscaleStabilizationSeconds())*time.Second, s.tolerance(),
			5*time.Minute, 30*time.Second,
		)
		go controller.Run(ctx, 1)
		<-w.done
		cancel()
		factory.Shutdown()
	})
	return w.replicas
}

// hpa is the scenario's spec as the API server stores it.
func (w *world) hpa() *autoscalingv2.HorizontalPodAutoscaler {
	spec := w.scenario.Spec
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: name},
			MinReplicas:    spec.MinReplicas,
			MaxReplicas:    spec.MaxReplicas,
			Behavior:       spec.Behavior.DeepCopy(),
		},
	}
	for i, metric := range spec.Metrics {
		target := autoscalingv2.MetricTarget{Type: metric.Target.Type}
		value := metric.Target.Value.DeepCopy()
		if metric.Target.Type == autoscalingv2.ValueMetricType {
			target.Value = &value
		} else {
			target.AverageValue = &value
		}
		hpa.Spec.Metrics = append(hpa.Spec.Metrics, autoscalingv2.MetricSpec{
			Type: autoscalingv2.ExternalMetricSourceType,
			External: &autoscalingv2.ExternalMetricSource{
				Metric: autoscalingv2.MetricIdentifier{Name: metricName(i)},
				Target: target,
			},
		})
	}
	defaults.SetDefaults_HorizontalPodAutoscaler(hpa)
	return hpa
}

func metricName(i int) string { return fmt.Sprintf("metric-%d", i) }

// getScale is where a reconciliation begins: the one before has ended, and this one waits for its time.
func (w *world) getScale(ctx context.Context) (bool, runtime.Object, error) {
	if w.next > 0 {
		w.replicas = append(w.replicas, w.spec)
	}
	if w.next == len(w.scenario.Steps) {
		close(w.done)
		<-ctx.Done()
		return true, nil, errors.New("the scenario has ended")
	}
	w.step = &w.scenario.Steps[w.next]
	w.next++
	// In whole milliseconds, which a float64 holds exactly.
	at := w.start.Add(time.Second + time.Duration(math.Round(w.step.T*1000))*time.Millisecond)
	time.Sleep(time.Until(at))
	if w.step.SpecReplicas != nil {
		w.spec = *w.step.SpecReplicas
	}
	status := w.spec
	if w.step.StatusReplicas != nil {
		status = *w.step.StatusReplicas
	}
	ready := status
	if w.step.ReadyPods != nil {
		ready = *w.step.ReadyPods
	}
	pods := make([]interface{}, max(status, ready))
	for i := range pods {
		pods[i] = pod(i, i < int(ready))
	}
	if err := w.pods.Replace(pods, ""); err != nil {
		return true, nil, err
	}
	return true, &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec:       autoscalingv1.ScaleSpec{Replicas: w.spec},
		Status:     autoscalingv1.ScaleStatus{Replicas: status, Selector: "app=" + name},
	}, nil
}

func (w *world) updateScale(action core.Action) (bool, runtime.Object, error) {
	scale := action.(core.UpdateAction).GetObject().(*autoscalingv1.Scale)
	w.spec = scale.Spec.Replicas
	return true, scale, nil
}

func (w *world) listMetric(action core.Action) (bool, runtime.Object, error) {
	list := &v1beta1.ExternalMetricValueList{}
	for i := range w.scenario.Spec.Metrics {
		if action.GetResource().Resource != metricName(i) {
			continue
		}
		items, ok := w.step.items(i)
		if !ok {
			return true, nil, errors.New("no such metric")
		}
		for _, item := range items {
			list.Items = append(list.Items, v1beta1.ExternalMetricValue{MetricName: metricName(i), Value: item})
		}
	}
	return true, list, nil
}

func pod(i int, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i), Namespace: namespace, Labels: map[string]string{"app": name}},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}},
		},
	}
}

// setGate sets HPAConfigurableTolerance, of the two gates the only one that the controller looks at: without
// HPAScaleToZero the API server refuses minReplicas 0.
func setGate(on bool) error {
	return utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{"HPAConfigurableTolerance": on})
}

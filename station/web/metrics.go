package web

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

// Metrics are the station's figures for Prometheus. What happened is told to it;
// what is now, it asks the station for when somebody reads. No label holds a MAC
// or a serial number.
type Metrics struct {
	reg      *prometheus.Registry
	units    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	fsync    prometheus.Histogram
	station  atomic.Pointer[Station]
}

// NewMetrics makes the figures, each with its zero.
func NewMetrics() *Metrics {
	m := &Metrics{
		reg: prometheus.NewRegistry(),
		units: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_units_total", Help: "Runs on units that have ended, by result. Simulated units are apart.",
		}, []string{"result", "simulated"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provisiond_unit_duration_seconds", Help: "Time of a run, by step; step total is the whole run.",
			Buckets: []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600},
		}, []string{"phase"}),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "provisiond_journal_fsync_seconds", Help: "Time until an entry of the journal was on disk.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
	m.reg.MustRegister(m.units, m.duration, m.fsync, collector{m}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, v := range verdicts {
		for _, s := range []string{"true", "false"} {
			m.units.WithLabelValues(string(v), s)
		}
	}
	return m
}

// UnitDone counts a run that has ended.
func (m *Metrics) UnitDone(r *provision.Result) {
	simulated := "false"
	if r.Simulated {
		simulated = "true"
	}
	result := string(provision.Error)
	if slices.Contains(verdicts, r.Verdict) {
		result = string(r.Verdict)
	}
	m.units.WithLabelValues(result, simulated).Inc()
	for _, s := range r.Steps {
		m.duration.WithLabelValues(s.Name).Observe(float64(s.MS) / 1000)
	}
	m.duration.WithLabelValues("total").Observe(float64(r.ElapsedMS) / 1000)
}

// JournalFsync counts how long an entry took until it was on disk.
func (m *Metrics) JournalFsync(d time.Duration) { m.fsync.Observe(d.Seconds()) }

// Registry takes further figures of the process.
func (m *Metrics) Registry() prometheus.Registerer { return m.reg }

func (m *Metrics) follow(s Station) { m.station.Store(&s) }

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// collector asks the station when somebody reads.
type collector struct{ m *Metrics }

var (
	slotState = prometheus.NewDesc("provisiond_slot_state", "1 for the state that a slot is in.", []string{"slot", "state"}, nil)
	keyUp     = prometheus.NewDesc("provisiond_keystore_up", "1 while the keystore takes keys.", nil, nil)
	condition = prometheus.NewDesc("provisiond_condition", "1 while a condition of the station holds.", []string{"condition"}, nil)
	ready     = prometheus.NewDesc("provisiond_ready", "1 while the station takes units.", nil, nil)
	quota     = prometheus.NewDesc("provisiond_quota_remaining", "Units that an open lot still takes.", []string{"lot"}, nil)
	build     = prometheus.NewDesc("provisiond_build_info", "1, with what this program is.", []string{"version", "goversion", "revision"}, nil)
)

// Describe sends what Collect may give.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{slotState, keyUp, condition, ready, quota, build} {
		ch <- d
	}
}

// Collect looks at the station.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.m.station.Load()
	if st == nil {
		return
	}
	v := (*st).View()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	one := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, s := range v.Slots {
		for _, state := range station.SlotStates() {
			gauge(slotState, one(s.State == state), s.Name, string(state))
		}
	}
	for _, k := range v.Conditions {
		gauge(condition, one(k.OK), k.Name)
		if k.Name == "keystore" {
			gauge(keyUp, one(k.OK))
		}
	}
	gauge(ready, one(len(notReady(v)) == 0))
	for _, l := range v.Lots {
		gauge(quota, float64(max(0, l.Quantity-l.Begun)), l.ID)
	}
	gauge(build, 1, v.Version, runtime.Version(), revision())
}

func revision() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

// notReady lists what keeps the station from taking units.
func notReady(v station.View) []string {
	var out []string
	if v.Stopping {
		out = append(out, "stopping: the station is being stopped")
	}
	for _, c := range v.Conditions {
		if !c.OK && !c.Ready {
			out = append(out, c.Name+": "+c.Text)
		}
	}
	return out
}

// healthz says that the process answers.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n")) // whoever asked is gone
}

// readyz says whether the station takes units, and if not, why.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	why := notReady(s.o.Station.View())
	if len(why) == 0 {
		_, _ = w.Write([]byte("ready\n")) // whoever asked is gone
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(strings.Join(why, "\n") + "\n")) // whoever asked is gone
}

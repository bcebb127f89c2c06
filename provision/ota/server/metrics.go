package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/provisiond/provisiond/provision/ota/release"
)

// Metrics are the service's figures for Prometheus. No label holds a MAC.
type Metrics struct {
	reg      *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bytes    prometheus.Counter
	lookups  *prometheus.CounterVec
	results  *prometheus.CounterVec
}

func newMetrics() *Metrics {
	m := &Metrics{
		reg: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_ota_requests_total", Help: "Requests that were answered, by route and status.",
		}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provisiond_ota_request_duration_seconds", Help: "Time of a request; of a download, until the last byte was handed to the kernel.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 300, 1800},
		}, []string{"route"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "provisiond_ota_sent_bytes_total", Help: "Bytes of firmware that were sent."}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_ota_keystore_lookups_total", Help: "What the keystore was asked: find shows no key, load reads one.",
		}, []string{"what", "outcome"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_ota_results_total", Help: "What units reported of their updates.",
		}, []string{"outcome"}),
	}
	m.reg.MustRegister(m.requests, m.duration, m.bytes, m.lookups, m.results, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, o := range []release.Outcome{release.Applied, release.Failed, release.Confirmed, release.RolledBack} {
		m.results.WithLabelValues(string(o))
	}
	return m
}

func (m *Metrics) follow(s *Server) {
	gauge := func(name, help string, value func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("provisiond_ota_keys_held", "Keys in memory.", func() float64 { return float64(s.keys.len()) })
	gauge("provisiond_ota_connections", "Connections that are open.", func() float64 { return float64(s.conns.Load()) })
	gauge("provisiond_ota_keystore_up", "0 while the keystore did not answer a moment ago.", func() float64 {
		if s.now().UnixNano() < s.down.Load() {
			return 0
		}
		return 1
	})
}

func (m *Metrics) request(route string, code int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(code)).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}

func (m *Metrics) sent(n int64)                   { m.bytes.Add(float64(n)) }
func (m *Metrics) lookup(what, outcome string)    { m.lookups.WithLabelValues(what, outcome).Inc() }
func (m *Metrics) result(outcome release.Outcome) { m.results.WithLabelValues(string(outcome)).Inc() }

// Metrics gives the figures: GET /metrics, and /healthz. They are for an address
// that units do not reach.
func (s *Server) Metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // whoever asked is gone
	})
	return mux
}

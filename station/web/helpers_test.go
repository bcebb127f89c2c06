package web_test

import (
	"context"
	"crypto/sha256"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

func TestMain(m *testing.M) {
	// Chromium's helpers and idle connections of the test's client end by themselves.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"), goleak.Cleanup(os.Exit))
}

func sum(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func result(v provision.Verdict, simulated bool) *provision.Result {
	return &provision.Result{
		Unit: "24:0a:c4:00:1f:01", Verdict: v, Simulated: simulated, ElapsedMS: 30000,
		Steps: []provision.StepResult{{Name: "flash", MS: 12000}, {Name: "close", MS: 100}},
	}
}

// panicking is a station whose history panics.
type panicking struct{ *double }

func (panicking) History(context.Context, station.HistoryQuery) ([]station.UnitView, error) {
	panic("boom")
}

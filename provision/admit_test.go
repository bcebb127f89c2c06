package provision_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// TestAdmission: whoever runs the lot is asked once the unit is known and before
// anything is written to it, gives it its serial number, and may refuse it.
func TestAdmission(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "hybrid")
		full := errors.New("lot 7 is full: 100 of 100 units were begun")
		answer := func(context.Context, chip.MAC) (provision.Admission, error) { return provision.Admission{}, full }
		var asked []chip.MAC
		run := func() *provision.Result {
			e := &provision.Engine{
				Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1",
				Admit: func(ctx context.Context, unit chip.MAC) (provision.Admission, error) {
					asked = append(asked, unit)
					return answer(ctx, unit)
				},
			}
			return e.Run(t.Context(), provision.Line{Port: port.FromSim(c, "sim"), Reset: rom.AutoReset{}}, job)
		}
		changes := c.Changes()
		wantVerdict(t, run(), provision.Fail, provision.CauseRefused, full.Error())
		if c.Changes() != changes || len(b.metas(unitMAC)) != 0 {
			t.Error("a refused unit was written to, or has a key")
		}
		answer = func(context.Context, chip.MAC) (provision.Admission, error) {
			return provision.Admission{Serial: "SN-0042"}, nil
		}
		r := run()
		wantPass(t, r)
		if r.Serial != "SN-0042" || len(asked) != 2 || asked[0] != unitMAC {
			t.Errorf("serial %q, asked %v", r.Serial, asked)
		}
		entries, err := b.jrn.Unit(unitMAC)
		if err != nil {
			t.Fatal(err)
		}
		noted := false
		for _, e := range entries {
			noted = noted || e.Step == "plan" && strings.Contains(string(e.Payload), `"serial":"SN-0042"`)
		}
		if !noted {
			t.Error("the journal does not have the serial number")
		}
		// A finished unit asks for nothing more of the lot.
		if r = run(); !r.FinishedBefore || len(asked) != 2 {
			t.Errorf("finished before: %v, asked %d times", r.FinishedBefore, len(asked))
		}
	})
}

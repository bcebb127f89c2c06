package provision_test

import (
	"context"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// slowCable carries no rate above its best: what is sent or read then is damaged.
type slowCable struct {
	rom.Port
	best int
	baud int
}

func (s *slowCable) SetBaud(ctx context.Context, baud int) error {
	s.baud = baud
	return s.Port.SetBaud(ctx, baud)
}

func (s *slowCable) Read(ctx context.Context, p []byte) (int, error) {
	n, err := s.Port.Read(ctx, p)
	if s.baud > s.best {
		for i := range n {
			p[i] ^= byte(i%7) << 3
		}
	}
	return n, err
}

// TestBaudFallsBack: a rate that the line does not carry is given up for a lower
// one, and a slot that is known to be slow begins with its own.
func TestBaudFallsBack(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		job := sampleJob(t, name, "hybrid") // 921600 baud
		for _, c := range []struct{ best, limit, want int }{{921600, 0, 921600}, {230400, 0, 230400}, {115200, 0, 115200}, {921600, 460800, 460800}, {921600, 9600, 115200}} {
			b := newMemoryBench(t)
			chip := b.board(espsim.Options{Model: model(t, name)})
			cable := &slowCable{Port: port.FromSim(chip, "sim"), best: c.best, baud: 115200}
			fastest := 0
			e := &provision.Engine{Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1", Observe: func(provision.Event) { fastest = max(fastest, cable.baud) }}
			r := e.Run(t.Context(), provision.Line{Port: cable, Reset: rom.AutoReset{}, MaxBaud: c.limit}, job)
			wantPass(t, r)
			if r.Baud != c.want || c.limit != 0 && fastest > c.want {
				t.Errorf("%+v: the flash was written at %d baud, and %d was the fastest rate", c, r.Baud, fastest)
			}
		}
	})
}

// TestRepeatWritesWhatIsWrong: under a key that the unit has, blocks of the flash
// that are right already are not written again.
func TestRepeatWritesWhatIsWrong(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "hybrid")
		first := b.run(t.Context(), c, job)
		wantPass(t, first)
		rework := func() *provision.Result {
			e := &provision.Engine{Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1", Operator: "anna"}
			r := e.Rework(t.Context(), provision.Line{Port: port.FromSim(c, "sim"), Reset: rom.AutoReset{}}, job, provision.Rework{Reason: "test"})
			wantPass(t, r)
			return r
		}
		if r := rework(); r.BytesWritten != 0 {
			t.Errorf("%d bytes were written anew to a flash that was right", r.BytesWritten)
		}
		app := job.Layout.Regions[len(job.Layout.Regions)-1]
		for _, region := range job.Layout.Regions {
			if len(region.Plain) > len(app.Plain) {
				app = region
			}
		}
		if err := c.Flash().EraseSector(app.Offset); err != nil {
			t.Fatal(err)
		}
		if r := rework(); r.BytesWritten == 0 || r.BytesWritten >= first.BytesWritten {
			t.Errorf("%d bytes of %d were written after one was damaged", r.BytesWritten, first.BytesWritten)
		}
	})
}

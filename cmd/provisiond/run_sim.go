package main

import (
	"context"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/config"
	"github.com/provisiond/provisiond/station/port"
)

// simulated is a slot of simulated boards, one after the other. Their MACs are new
// with every start, since the keystore remembers the old ones.
func (d *daemon) simulated(cfg *config.File, addr port.Address) station.Fixture {
	s := cfg.Simulated
	base := uint32(time.Now().Unix())
	return &station.SimFixture{
		Units: s.Units, Pause: s.Pause, Patience: 2,
		Next: func(_ context.Context, _ int) (port.Port, error) {
			m, err := chip.ByName(addr.Chip)
			if err != nil {
				return nil, err
			}
			faults, err := espsim.ParseFaults(s.Faults)
			if err != nil {
				return nil, err
			}
			n := d.boards.Add(1)
			mac := chip.MAC{0x02, byte(base >> 16), byte(base >> 8), byte(base), byte(n >> 8), byte(n)}
			prints := s.Prints
			if prints == "" {
				prints = sample.AppText
			}
			c, err := espsim.New(espsim.Options{
				Model: m, MAC: mac, Revision: demoRevision(m), AppPrints: prints, Faults: faults, Pace: s.Paced,
			})
			if err != nil {
				return nil, err
			}
			return simulatedPort{port.FromSim(c, "sim://"+m.Name), c}, nil
		},
	}
}

// simulatedPort is a board together with its port.
type simulatedPort struct {
	rom.Port
	c *espsim.Chip
}

func (p simulatedPort) Close() error { return p.c.Close() }

// virginPlan plans for a chip fresh from the factory.
func virginPlan(ctx context.Context, job *provision.Job) (*provision.PlanReport, error) {
	board, err := (&planCmd{}).virgin(job.Recipe)
	if err != nil {
		return nil, err
	}
	defer func() { _ = board.Close() }()
	p, err := provision.MakePlan(ctx, provision.Line{Port: port.FromSim(board, "sim://"+board.Model().Name), Reset: rom.AutoReset{}}, job, nil)
	if err != nil {
		return nil, err
	}
	p.Unit = ""
	return p, nil
}

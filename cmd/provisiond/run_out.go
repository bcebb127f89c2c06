package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/label"
)

// outgoing is what leaves the station.
type outgoing struct {
	box      *outbox.Outbox
	printers []string
	d        *daemon
}

func (d *daemon) openOutgoing() error {
	box, err := d.cfg.Out.Open(d.jrn, filepath.Join(d.cfg.State, "outbox"), d.cfg.Resolve)
	if err != nil {
		return &usageError{err}
	}
	d.out = &outgoing{box: box, printers: d.cfg.Out.Printers(), d: d}
	return nil
}

// wake tells the outbox that the journal has something new.
func (o *outgoing) wake() { o.box.Notify() }

// reprint is nil where there is no printer. The station's first printer prints.
func (o *outgoing) reprint() func(ctx context.Context, by station.Person, unit chip.MAC) error {
	if len(o.printers) == 0 {
		return nil
	}
	return func(ctx context.Context, by station.Person, unit chip.MAC) error {
		_, err := label.Reprint(ctx, o.d.jrn, label.Request{Printer: o.printers[0], Unit: unit, Operator: by.Name, Reason: "asked for at the station"})
		if errors.Is(err, label.ErrNotPassed) {
			return &station.ActionError{Kind: station.ActionConflict, Text: "the unit has not passed, so it gets no label", Next: "look at its history"}
		}
		if err == nil {
			o.wake()
		}
		return err
	}
}

// run delivers until ctx ends, and shows where the sinks stand.
func (o *outgoing) run(ctx context.Context, work *sync.WaitGroup, conds *station.Conditions) {
	work.Go(func() {
		if err := o.box.Run(ctx); err != nil && ctx.Err() == nil {
			conds.Warn("outbox", "nothing leaves the station: "+err.Error(), "see docs/factory.md, then start the station again")
			o.d.a.log.Error("outbox", zap.Error(err))
		}
	})
	work.Go(func() {
		t := time.NewTicker(5 * time.Second)
		defer t.Stop()
		for {
			for _, s := range o.box.Status() {
				if p := s.Problem(time.Now()); p != "" {
					conds.Warn("outbox-"+s.Name, p, "check "+s.Kind+" "+s.Name+"; its events wait in the journal")
				} else {
					conds.Good("outbox-" + s.Name)
				}
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

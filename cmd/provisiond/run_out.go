package main

import (
	"context"
	"sync"

	"github.com/provisiond/provisiond/station"
)

// outgoing is what leaves the station.
type outgoing struct{}

func (d *daemon) openOutgoing() error { d.out = &outgoing{}; return nil }

func (o *outgoing) wake() {}

func (o *outgoing) reprint() func(ctx context.Context, unit string) error { return nil }

func (o *outgoing) run(context.Context, *sync.WaitGroup, *station.Conditions) {}

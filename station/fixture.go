package station

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// NetFixture is a serial server: its port is there when it takes a connection. The
// connection that was made to find that out is the one that the run uses.
type NetFixture struct {
	Address string
	Options port.Options
	// Every is how often a port that is away is tried. 0: one second.
	Every time.Duration

	last time.Time // a connection was made; one worker calls
}

// Arrive tries until the server takes a connection.
func (f *NetFixture) Arrive(ctx context.Context) (*Arrival, error) {
	every := f.Every
	if every == 0 {
		every = time.Second
	}
	// A server that takes connections and drops them is asked no more often than one
	// that is away.
	if wait := every - time.Since(f.last); wait > 0 && !f.last.IsZero() && !sleep(ctx, wait) {
		return nil, ctx.Err()
	}
	for {
		p, err := port.Open(ctx, f.Address, f.Options)
		if err == nil {
			f.last = time.Now()
			h := &held{address: f.Address, life: ctx, gone: make(chan struct{})}
			h.hold(p)
			return &Arrival{Device: f.Address, Gone: h.gone, Open: h.open}, nil
		}
		if !sleep(ctx, every) {
			return nil, ctx.Err()
		}
	}
}

// held keeps a serial server's port between runs, and reads from it meanwhile, so
// that its end is noticed.
type held struct {
	address string
	life    context.Context // of the slot's worker
	gone    chan struct{}
	once    sync.Once

	mu   sync.Mutex
	idle port.Port // nil while a run has it
	stop context.CancelFunc
	over chan struct{} // the reader has ended
}

// hold takes a port in and watches it.
func (h *held) hold(p port.Port) {
	ctx, stop := context.WithCancel(h.life)
	over := make(chan struct{})
	h.mu.Lock()
	h.idle, h.stop, h.over = p, stop, over
	h.mu.Unlock()
	go func() {
		defer close(over)
		defer stop()
		buf := make([]byte, 4096)
		for {
			if _, err := p.Read(ctx, buf); err == nil {
				continue
			}
			if ctx.Err() == nil || h.life.Err() != nil { // not by open
				h.leave(p)
			}
			return
		}
	}()
}

func (h *held) leave(p port.Port) {
	h.mu.Lock()
	if h.idle == p {
		h.idle = nil
	}
	h.mu.Unlock()
	_ = p.Close()
	h.once.Do(func() { close(h.gone) })
}

// open gives the port to a run. Closing it gives it back.
func (h *held) open(context.Context) (port.Port, error) {
	h.mu.Lock()
	p, stop, over := h.idle, h.stop, h.over
	h.idle = nil
	h.mu.Unlock()
	if p == nil {
		return nil, errors.New("the serial server has ended the connection")
	}
	stop()
	<-over
	if h.life.Err() != nil {
		return nil, h.life.Err()
	}
	return &lent{Port: p, h: h}, nil
}

// lent is a held port while a run has it.
type lent struct {
	port.Port
	h    *held
	once sync.Once
}

func (l *lent) Close() error {
	l.once.Do(func() { l.h.hold(l.Port) })
	return nil
}

// SimFixture puts simulated boards into a slot, one after the other, as an
// operator does: a board is taken out Pause after its run has ended, and the next
// one put in. A board that met an error of the station is plugged in again, as
// long as Patience lasts.
type SimFixture struct {
	// Next makes the board after n others.
	Next  func(ctx context.Context, n int) (port.Port, error)
	Units int // 0: without end
	Pause time.Duration
	// Patience is how often a board is plugged in again.
	Patience int

	n     int       // boards made; Arrive and Taken are called by one worker
	again *simBoard // to be plugged in again
}

// Arrive plugs the next board in.
func (f *SimFixture) Arrive(ctx context.Context) (*Arrival, error) {
	b := f.again
	f.again = nil
	if b == nil {
		if f.Units > 0 && f.n >= f.Units {
			<-ctx.Done() // the pallet is empty
			return nil, ctx.Err()
		}
		p, err := f.Next(ctx, f.n)
		if err != nil {
			return nil, fmt.Errorf("simulated board: %w", err)
		}
		b = &simBoard{Port: p}
		f.n++
	}
	b.mu.Lock()
	b.out = make(chan struct{})
	b.mu.Unlock()
	forget := context.AfterFunc(ctx, b.close) // once no run has it
	return &Arrival{
		Device: b.Info().Name, Gone: b.out, Open: b.lend,
		Taken: func(v provision.Verdict) {
			forget() // or the worker's context would keep every board of a month
			if v == provision.Error && b.errors < f.Patience {
				b.errors++
				f.again = b
			} else {
				b.close()
			}
			time.AfterFunc(f.Pause, func() { close(b.out) })
		},
	}, nil
}

// simBoard is a board in the operator's hand.
type simBoard struct {
	port.Port
	errors int
	out    chan struct{} // closed when it is taken out of the fixture

	mu     sync.Mutex
	busy   bool
	closed bool // or to be closed by the run that has it
}

func (b *simBoard) lend(context.Context) (port.Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("the board was taken out")
	}
	b.busy = true
	return simLoan{b.Port, b}, nil
}

func (b *simBoard) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && !b.busy {
		_ = b.Port.Close()
	}
	b.closed = true
}

// simLoan is a board's port while a run has it.
type simLoan struct {
	port.Port
	b *simBoard
}

func (l simLoan) Close() error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.b.busy = false
	if l.b.closed {
		return l.Port.Close()
	}
	return nil
}

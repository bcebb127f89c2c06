// Command farm is a fixture full of simulated boards, in a process of its own: for
// tests that want a whole production line, and for benchmarks that must tell the
// station's cost from the simulators'. Each slot is an RFC 2217 server at an
// address that stays; boards are put in and taken out by requests on standard
// input, one JSON object a line, each answered by one on standard output:
//
//	{"op":"insert","slot":3,"chip":"esp32c3","mac":"02:…","faults":"noise=1e-5"}
//	{"op":"unplug","slot":3}   the cable; the board stays as it is
//	{"op":"plug","slot":3}
//	{"op":"power","slot":3,"on":false}
//	{"op":"look","slot":3}     answers with how often the board was burned
//	{"op":"remove","slot":3}   the same, and takes it out
//	{"op":"stats"}             the farm's own processor time and memory
//
// The farm ends with its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/serve"
	"github.com/provisiond/provisiond/internal/sample"
)

type request struct {
	Op     string   `json:"op"`
	Slot   int      `json:"slot"`
	Chip   string   `json:"chip"`
	MAC    chip.MAC `json:"mac"`
	Faults string   `json:"faults"`
	Seed   int64    `json:"seed"`
	On     bool     `json:"on"`
}

type answer struct {
	Error   string  `json:"error,omitempty"`
	Address string  `json:"address,omitempty"` // of the slot
	Burns   int     `json:"burns,omitempty"`   // burn commands that the board saw
	Seconds float64 `json:"seconds,omitempty"` // processor time
	MaxRSS  int64   `json:"max_rss,omitempty"` // kB
}

type slot struct {
	board   *espsim.Chip
	address string
	stop    context.CancelFunc
	over    chan struct{}
}

type farm struct {
	slots map[int]*slot
	pace  bool
}

func main() {
	pace := flag.Bool("pace", false, "bytes take as long as on a wire")
	flag.Parse()
	f := &farm{slots: map[int]*slot{}, pace: *pace}
	if err := f.serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "farm:", err)
		os.Exit(1)
	}
}

func (f *farm) serve(in io.Reader, out io.Writer) error {
	enc, lines := json.NewEncoder(out), bufio.NewScanner(in)
	for lines.Scan() {
		var r request
		var a answer
		err := json.Unmarshal(lines.Bytes(), &r)
		if err == nil {
			a, err = f.do(r)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
	for _, s := range f.slots {
		s.unplug()
	}
	return lines.Err()
}

func (f *farm) do(r request) (answer, error) {
	if r.Op == "stats" {
		return stats()
	}
	s := f.slots[r.Slot]
	if s == nil {
		s = &slot{}
		f.slots[r.Slot] = s
	}
	switch r.Op {
	case "insert":
		if s.board != nil {
			return answer{}, errors.New("there is a board in it")
		}
		if err := f.insert(s, r); err != nil {
			return answer{}, err
		}
		return answer{Address: s.address}, s.plug()
	case "plug":
		return answer{Address: s.address}, s.plug()
	case "unplug":
		s.unplug()
		return answer{}, nil
	case "power":
		if s.board == nil {
			return answer{}, errors.New("there is no board in it")
		}
		s.board.Power(r.On)
		return answer{}, nil
	case "look":
		if s.board == nil {
			return answer{}, errors.New("there is no board in it")
		}
		return answer{Burns: s.board.Burns()}, nil
	case "remove":
		s.unplug()
		if s.board == nil {
			return answer{}, errors.New("there is no board in it")
		}
		a := answer{Burns: s.board.Burns()}
		err := s.board.Close()
		s.board = nil
		return a, err
	}
	return answer{}, fmt.Errorf("unknown request %q", r.Op)
}

func (f *farm) insert(s *slot, r request) error {
	m, err := chip.ByName(r.Chip)
	if err != nil {
		return err
	}
	faults, err := espsim.ParseFaults(r.Faults)
	if err != nil {
		return err
	}
	s.board, err = espsim.New(espsim.Options{
		Model: m, MAC: r.MAC, Revision: max(m.Lockdown.ClosedMinimum, 4), AppPrints: sample.AppText, Faults: faults, Pace: f.pace, Seed: r.Seed,
	})
	return err
}

// plug puts the slot's server up, at the address that it had before.
func (s *slot) plug() error {
	if s.stop != nil {
		return nil
	}
	if s.board == nil {
		return errors.New("there is no board in it")
	}
	address := s.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	var lc net.ListenConfig
	ctx, stop := context.WithCancel(context.Background())
	s.board.Plug() // a fault may have taken its port away
	if err := s.board.Reopen(ctx); err != nil {
		stop()
		return err
	}
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		stop()
		return err
	}
	s.address, s.stop, s.over = ln.Addr().String(), stop, make(chan struct{})
	board, over := s.board, s.over
	go func() {
		defer close(over)
		if err := serve.RFC2217(ctx, ln, board); err != nil {
			fmt.Fprintln(os.Stderr, "farm:", err)
		}
	}()
	return nil
}

// unplug takes the server down: a port that is not there.
func (s *slot) unplug() {
	if s.stop == nil {
		return
	}
	s.stop()
	<-s.over
	s.stop = nil
}

func stats() (answer, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return answer{}, err
	}
	busy := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	return answer{Seconds: busy.Seconds(), MaxRSS: u.Maxrss}, nil
}

package provision

import (
	"context"
	"errors"
	"fmt"
)

// Verdict is how a run on a unit ended.
type Verdict string

// The verdicts. FAIL speaks of the unit, ERROR of the station.
const (
	Pass        Verdict = "PASS"
	Fail        Verdict = "FAIL"
	Error       Verdict = "ERROR"
	Aborted     Verdict = "ABORTED"
	Quarantined Verdict = "QUARANTINED"
)

// Exit codes of the command line: documented API.
const (
	ExitDone        = 0
	ExitError       = 1  // ERROR: the station
	ExitUsage       = 2  // a wrong flag, configuration, recipe or key file
	ExitFail        = 3  // FAIL: the unit
	ExitAborted     = 4  // ABORTED
	ExitRefused     = 10 // the unit was refused before anything irreversible
	ExitQuarantined = 11
	ExitKeystore    = 12 // the keystore is not available
	ExitJournal     = 13 // the journal is missing, damaged or does not verify
)

// Cause tells failures apart that the same verdict may hide.
type Cause string

// The causes of a run that did not end with PASS.
const (
	CauseRefused     Cause = "refused"     // nothing irreversible was done
	CauseUnit        Cause = "unit"        // the unit failed a check
	CauseStation     Cause = "station"     // port, line, disk
	CauseKeystore    Cause = "keystore"    // not available, or does not confirm
	CauseJournal     Cause = "journal"     // cannot be written
	CauseCancelled   Cause = "cancelled"   // by the operator or a shutdown
	CauseQuarantined Cause = "quarantined" // what is known is not enough to go on
)

// Failure ends a run. It always carries the next step for the person who reads it.
type Failure struct {
	Cause    Cause
	Reason   string
	NextStep string
	Err      error // what lies below, may be nil
	Unknown  bool  // nobody knows what the last act did to the fuses
	Away     bool  // of a keystore failure: it was not there; otherwise it was, and says something of this unit
	Finished bool  // the unit is refused because it passed before
	Closed   bool  // the unit is refused because its loader is closed already
}

// Error gives reason and next step.
func (f *Failure) Error() string {
	s := f.Reason
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	if f.NextStep != "" {
		s += " (next: " + f.NextStep + ")"
	}
	return s
}

// Unwrap gives what lies below.
func (f *Failure) Unwrap() error { return f.Err }

// Verdict is the verdict that goes with the cause.
func (f *Failure) Verdict() Verdict {
	switch f.Cause {
	case CauseRefused, CauseUnit:
		return Fail
	case CauseCancelled:
		return Aborted
	case CauseQuarantined:
		return Quarantined
	case CauseStation, CauseKeystore, CauseJournal:
	}
	return Error
}

// ExitCode is the exit code that goes with the cause.
func (f *Failure) ExitCode() int {
	switch f.Cause {
	case CauseRefused:
		return ExitRefused
	case CauseUnit:
		return ExitFail
	case CauseKeystore:
		return ExitKeystore
	case CauseJournal:
		return ExitJournal
	case CauseCancelled:
		return ExitAborted
	case CauseQuarantined:
		return ExitQuarantined
	case CauseStation:
	}
	return ExitError
}

func refuse(next, format string, args ...any) *Failure {
	return &Failure{Cause: CauseRefused, Reason: fmt.Sprintf(format, args...), NextStep: next}
}

func quarantine(next, format string, args ...any) *Failure {
	return &Failure{Cause: CauseQuarantined, Reason: fmt.Sprintf(format, args...), NextStep: next}
}

// unsure is a failure that leaves open what the last act did to the fuses.
func unsure(f *Failure) *Failure {
	f.Unknown = true
	return f
}

func failUnit(next, format string, args ...any) *Failure {
	return &Failure{Cause: CauseUnit, Reason: fmt.Sprintf(format, args...), NextStep: next}
}

func stationError(err error, next, format string, args ...any) *Failure {
	return &Failure{Cause: CauseStation, Reason: fmt.Sprintf(format, args...), NextStep: next, Err: err}
}

// asFailure makes a Failure of any error. A cancelled context is ABORTED; what
// nobody classified is the station's.
func asFailure(ctx context.Context, err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return &Failure{
			Cause: CauseCancelled, Reason: "stopped before it was finished",
			NextStep: "start the same job again: it goes on from what the chip shows", Err: err,
		}
	}
	return stationError(err, "check cable and port, then start the same job again", "the station could not go on")
}

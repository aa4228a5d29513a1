// Package remote is both ends of the wire between a service and a crypto machine that
// runs apart from it: a Machine that calls one, and a Server for any.
//
// The wire is gRPC (machinepb/machine.proto) over mutual TLS or a unix socket. A
// connection has one bidirectional stream that carries every call: calls that come while
// a message is being sent go out together in the next one, a call that comes alone goes
// out at once, and each is answered when it is done, whatever the order. A call whose
// caller gives up is cancelled at the machine. A machine that is full stops reading, and
// HTTP/2's flow control (RFC 9113, section 5.2) has the callers wait.
//
// Errors cross the wire as faults: errors.Is says of them what it says in the process
// where they began, for a call as for each operation in it.
//
// The wire has no ceremony, no report and no signature by the machine's identity: who may
// use it may have keys made and used, and nothing else.
package remote

import (
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	pb "github.com/trikey/trikey/hsm/remote/machinepb"
	"github.com/trikey/trikey/internal/fault"
)

// maxMessage bounds a message: the largest call of a service, and what its keys and
// contexts add.
const maxMessage = 64 << 20

// bundle is how many bytes are put together in one message before it is sent; a call may
// be longer by itself.
const bundle = 1 << 20

// window is how much of a stream HTTP/2 lets a peer send ahead.
const window = 4 << 20

// opsOf is operations as they cross the wire. What is in them stays the caller's.
func opsOf(ops []hsm.Op) []*pb.Op {
	wire, all := make([]*pb.Op, len(ops)), make([]pb.Op, len(ops))
	for i := range ops {
		op, w := &ops[i], &all[i]
		w.Kind, w.Algorithm, w.Generation = uint32(op.Kind), uint32(op.Algorithm), op.Generation
		if i > 0 && op.Key == ops[i-1].Key {
			w.SameKey = true
		} else {
			w.Key = []byte(op.Key)
		}
		w.To, w.Context, w.ToContext = []byte(op.To), op.Context, op.ToContext
		w.Record, w.RecordRevision = op.Record.Name, op.Record.Revision
		w.SegmentHeader, w.SegmentCounter, w.SegmentLast = op.Segment.Header, op.Segment.Counter, op.Segment.Last
		w.Input, w.Signature, w.Size, w.Reveal = op.Input, op.Signature, int64(op.Size), op.Reveal
		wire[i] = w
	}
	return wire
}

// opsFrom is the reverse.
func opsFrom(wire []*pb.Op) []hsm.Op {
	ops := make([]hsm.Op, len(wire))
	for i, w := range wire {
		key := hsm.WrappedKey(w.GetKey())
		if w.GetSameKey() && i > 0 {
			key = ops[i-1].Key
		}
		ops[i] = hsm.Op{
			Kind: hsm.Kind(min(w.GetKind(), 255)), Key: key, To: hsm.WrappedKey(w.GetTo()), Algorithm: alg.ID(min(w.GetAlgorithm(), 255)),
			Context: w.GetContext(), ToContext: w.GetToContext(), Record: hsm.RecordID{Name: w.GetRecord(), Revision: w.GetRecordRevision()},
			Segment:    hsm.Segment{Header: w.GetSegmentHeader(), Counter: w.GetSegmentCounter(), Last: w.GetSegmentLast()},
			Generation: w.GetGeneration(), Input: w.GetInput(), Signature: w.GetSignature(), Size: int(w.GetSize()), Reveal: w.GetReveal(),
		}
	}
	return ops
}

func bindingOf(b hsm.Binding) *pb.Binding {
	return &pb.Binding{Index: b.Index, Version: b.Version, Algorithm: uint32(b.Algorithm), Purpose: uint32(b.Purpose), Exportable: b.Exportable}
}

func bindingFrom(b *pb.Binding) hsm.Binding {
	return hsm.Binding{
		Index: b.GetIndex(), Version: b.GetVersion(), Algorithm: alg.ID(min(b.GetAlgorithm(), 255)),
		Purpose: hsm.Purpose(min(b.GetPurpose(), 255)), Exportable: b.GetExportable(),
	}
}

func statusOf(s hsm.Status) *pb.ProbeAnswer {
	return &pb.ProbeAnswer{
		State: string(s.State), Have: uint32(s.Have), Need: uint32(s.Need), Shares: uint32(s.Shares), Kcv: s.KCV, Generation: s.Generation,
		RootId: s.RootID[:], SplitId: s.SplitID[:], Region: s.Region, MachineId: s.MachineID[:], Engine: s.Engine, Chip: s.Chip,
		Memory: s.Memory, Fingerprint: s.Identity,
	}
}

func statusFrom(p *pb.ProbeAnswer) hsm.Status {
	return hsm.Status{
		State: hsm.State(p.GetState()), Have: int(p.GetHave()), Need: int(p.GetNeed()), Shares: int(p.GetShares()), KCV: p.GetKcv(),
		Generation: p.GetGeneration(), RootID: idFrom(p.GetRootId()), SplitID: idFrom(p.GetSplitId()), Region: p.GetRegion(),
		MachineID: idFrom(p.GetMachineId()), Engine: p.GetEngine(), Chip: p.GetChip(), Memory: p.GetMemory(), Identity: p.GetFingerprint(),
	}
}

// idFrom reads an identifier; one of another length is the zero one, which nothing has.
func idFrom(b []byte) (id hsm.ID) {
	if len(b) == len(id) {
		copy(id[:], b)
	}
	return id
}

// faultOf is an error as it crosses the wire: the text of one that is no fault was written
// for this process's log.
func faultOf(err error) *pb.Fault {
	if err == nil {
		return nil
	}
	f := &pb.Fault{Code: string(fault.CodeOf(err))}
	var detailed *fault.Error
	if errors.As(err, &detailed) {
		f.Detail = detailed.Error()
	}
	return f
}

func faultFrom(f *pb.Fault) error {
	if f == nil {
		return nil
	}
	return fault.Problem{Code: fault.Code(f.GetCode()), Title: fault.Code(f.GetCode()).Title(), Detail: f.GetDetail()}.Err()
}

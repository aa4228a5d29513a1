package api

import (
	"google.golang.org/protobuf/proto"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/kms"
)

// grpcItem is an item of a batch: a request and its reference.
type grpcItem[R proto.Message] interface {
	proto.Message
	GetRequest() R
	GetReference() string
}

// grpcBatch carries out the items of a batch, and has each result taken.
func grpcBatch[R proto.Message, I grpcItem[R]](
	g *grpcServer, r *request, in proto.Message, items []I, call func(R) (kms.Call, error), take func(*kms.Call, string),
) error {
	if err := known(in); err != nil {
		return err
	}
	if err := checkCount(false, len(items)); err != nil {
		return err
	}
	calls, err := doBatch(g.server, r, batch[I]{items: items}, func(item *I) (kms.Call, error) {
		if err := known(*item); err != nil {
			return kms.Call{}, err
		}
		return call((*item).GetRequest())
	})
	if err != nil {
		return err
	}
	for i := range calls {
		take(&calls[i], items[i].GetReference())
	}
	return nil
}

func (g *grpcServer) batchEncrypt(r *request, in *pb.BatchEncryptRequest) (*pb.BatchSealed, error) {
	out := &pb.BatchSealed{Items: make([]*pb.BatchSealed_Item, 0, len(in.GetItems()))}
	return out, grpcBatch(g, r, in, in.GetItems(), grpcEncrypt, func(c *kms.Call, reference string) {
		out.Items = append(out.Items, grpcSealedItem(r, c, reference))
	})
}

func (g *grpcServer) batchReencrypt(r *request, in *pb.BatchReencryptRequest) (*pb.BatchSealed, error) {
	out := &pb.BatchSealed{Items: make([]*pb.BatchSealed_Item, 0, len(in.GetItems()))}
	return out, grpcBatch(g, r, in, in.GetItems(), grpcReencrypt, func(c *kms.Call, reference string) {
		out.Items = append(out.Items, grpcSealedItem(r, c, reference))
	})
}

func (g *grpcServer) batchDecrypt(r *request, in *pb.BatchDecryptRequest) (*pb.BatchOpened, error) {
	out := &pb.BatchOpened{Items: make([]*pb.BatchOpened_Item, 0, len(in.GetItems()))}
	return out, grpcBatch(g, r, in, in.GetItems(), grpcDecrypt, func(c *kms.Call, reference string) {
		item := &pb.BatchOpened_Item{Reference: reference}
		if c.Err != nil {
			item.Result = &pb.BatchOpened_Item_Error{Error: grpcItemError(r.Context(), c.Err)}
		} else {
			item.Result = &pb.BatchOpened_Item_Opened{Opened: grpcOpened(c)}
		}
		out.Items = append(out.Items, item)
	})
}

func grpcSealedItem(r *request, c *kms.Call, reference string) *pb.BatchSealed_Item {
	item := &pb.BatchSealed_Item{Reference: reference}
	if c.Err != nil {
		item.Result = &pb.BatchSealed_Item_Error{Error: grpcItemError(r.Context(), c.Err)}
	} else {
		item.Result = &pb.BatchSealed_Item_Sealed{Sealed: grpcSealed(c)}
	}
	return item
}

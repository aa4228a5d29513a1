package api

import (
	"context"
	"errors"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
)

// callOf is the call of an operation.
func callOf(o *pb.Operation) (kms.Call, error) {
	if err := known(o); err != nil {
		return kms.Call{}, err
	}
	switch o := o.GetOperation().(type) {
	case *pb.Operation_Encrypt:
		return grpcEncrypt(o.Encrypt)
	case *pb.Operation_Decrypt:
		return grpcDecrypt(o.Decrypt)
	case *pb.Operation_Reencrypt:
		return grpcReencrypt(o.Reencrypt)
	case *pb.Operation_DataKey:
		return grpcDataKey(o.DataKey)
	case *pb.Operation_Mac:
		return grpcMac(o.Mac)
	case *pb.Operation_VerifyMac:
		return grpcVerifyMac(o.VerifyMac)
	case *pb.Operation_Sign:
		return grpcSign(o.Sign)
	case *pb.Operation_Verify:
		return grpcVerify(o.Verify)
	case *pb.Operation_Random:
		return grpcRandom(o.Random)
	}
	return kms.Call{}, fault.New(fault.BadRequest, "operation: required")
}

// kindOf is the name of an operation in the audit log.
func kindOf(o *pb.Operation) string {
	switch o.GetOperation().(type) {
	case *pb.Operation_Encrypt:
		return "encrypt"
	case *pb.Operation_Decrypt:
		return "decrypt"
	case *pb.Operation_Reencrypt:
		return "reencrypt"
	case *pb.Operation_DataKey:
		return "datakey"
	case *pb.Operation_Mac:
		return "mac"
	case *pb.Operation_VerifyMac:
		return "mac_verify"
	case *pb.Operation_Sign:
		return "sign"
	case *pb.Operation_Verify:
		return "verify"
	case *pb.Operation_Random:
		return "random"
	}
	return opDo
}

// resultOf makes the result of an operation whose call was carried out.
func resultOf(ctx context.Context, o *pb.Operation, c *kms.Call, into *pb.Result) {
	into.Id = o.GetId()
	err := c.Err
	switch o := o.GetOperation().(type) {
	case *pb.Operation_VerifyMac, *pb.Operation_Verify:
		if err == nil || errors.Is(err, fault.SignatureInvalid) {
			into.Result = &pb.Result_Verified{Verified: grpcVerified(c)}
			return
		}
	case *pb.Operation_Sign:
		if err == nil {
			signed, failed := grpcSigned(c, o.Sign.GetFormat())
			if err = failed; err == nil {
				into.Result = &pb.Result_Signed{Signed: signed}
				return
			}
		}
	}
	if err != nil {
		into.Result = &pb.Result_Error{Error: grpcItemError(ctx, err)}
		return
	}
	switch o.GetOperation().(type) {
	case *pb.Operation_Decrypt:
		into.Result = &pb.Result_Opened{Opened: grpcOpened(c)}
	case *pb.Operation_DataKey:
		into.Result = &pb.Result_DataKey{DataKey: grpcDataKeyOf(c)}
	case *pb.Operation_Mac:
		into.Result = &pb.Result_Mac{Mac: grpcCode(c)}
	case *pb.Operation_Random:
		into.Result = &pb.Result_Random{Random: &pb.RandomResponse{Random: c.Output}}
	default:
		into.Result = &pb.Result_Sealed{Sealed: grpcSealed(c)}
	}
}

//! ICReq and ICResp: what the two ends agree on.
//!
//! Pure functions of a request or response and the own options. When the PDUs
//! may come is decided by the state machines of the roles.
#![forbid(unsafe_code)]

use crate::codec::Framing;
use crate::connection::options::{InitiatorOptions, TargetOptions};
use crate::pdu::{DigestFlags, IcReq, IcResp, MAX_PDA_Z, MIN_MAXH2CDATA};
use crate::peer_error::PeerError;

/// What a handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Digests and alignments of every later PDU.
    pub framing: Framing,
    /// R2Ts that may be outstanding for one command, 1's based.
    pub max_r2t: u32,
    /// Most data of one H2CData PDU.
    pub max_h2c_data_bytes: u32,
}

/// The controller's answer to a host's request.
pub fn answer(request: &IcReq, options: &TargetOptions) -> Result<(IcResp, Agreement), PeerError> {
    check_version(request.pfv.get())?;
    check_alignment(request.hpda_z)?;
    let header_digest = request.dgst.header() && options.accepts_header_digest;
    let data_digest = request.dgst.data() && options.accepts_data_digest;
    let response =
        IcResp::new(options.cpda_z, DigestFlags::new(header_digest, data_digest), options.max_h2c_data_bytes);
    let framing = Framing {
        header_digest,
        data_digest,
        receive_alignment: alignment(options.cpda_z),
        send_alignment: alignment(request.hpda_z),
    };
    let max_r2t = request.maxr2t_z.get().saturating_add(1).min(options.max_r2t);
    Ok((response, Agreement { framing, max_r2t, max_h2c_data_bytes: options.max_h2c_data_bytes }))
}

/// The host's request.
#[must_use]
pub fn request(options: &InitiatorOptions) -> IcReq {
    let dgst = DigestFlags::new(options.needs_header_digest, options.needs_data_digest);
    IcReq::new(options.hpda_z, dgst, options.max_r2t - 1)
}

/// What a controller's answer to [`request`] means.
pub fn accept(response: &IcResp, options: &InitiatorOptions) -> Result<Agreement, PeerError> {
    check_version(response.pfv.get())?;
    check_alignment(response.cpda_z)?;
    //= NVMe/TCP 1.0 §3.3.1.1
    //# If a host did not request the use of header digest or data digest in the ICReq PDU but the use of the digest
    //# was enabled by the controller in the ICResp PDU, then the host shall treat that ICResp PDU as a fatal
    //# transport error
    let (header_digest, data_digest) = (response.dgst.header(), response.dgst.data());
    if header_digest && !options.needs_header_digest || data_digest && !options.needs_data_digest {
        return Err(PeerError::DigestNotRequested { dgst: response.dgst.0 });
    }
    let maxh2cdata = response.maxh2cdata.get();
    if !maxh2cdata.is_multiple_of(4) {
        return Err(PeerError::MaxH2cDataUnaligned { maxh2cdata });
    }
    if maxh2cdata < MIN_MAXH2CDATA {
        return Err(PeerError::MaxH2cDataTooSmall { maxh2cdata });
    }
    let framing = Framing {
        header_digest,
        data_digest,
        receive_alignment: alignment(options.hpda_z),
        send_alignment: alignment(response.cpda_z),
    };
    let max_h2c_data_bytes = maxh2cdata.min(options.max_h2c_data_bytes);
    Ok(Agreement { framing, max_r2t: options.max_r2t, max_h2c_data_bytes })
}

fn check_version(pfv: u16) -> Result<(), PeerError> {
    if pfv == 0 { Ok(()) } else { Err(PeerError::FormatVersion { pfv }) }
}

fn check_alignment(pda_z: u8) -> Result<(), PeerError> {
    if pda_z <= MAX_PDA_Z { Ok(()) } else { Err(PeerError::Alignment { pda_z }) }
}

/// Bytes of a 0's based number of dwords.
const fn alignment(pda_z: u8) -> u8 {
    (pda_z + 1) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_used_if_both_ends_want_it() {
        for (asked, accepted) in [(false, false), (false, true), (true, false), (true, true)] {
            let options = TargetOptions { accepts_header_digest: accepted, ..TargetOptions::DEFAULT };
            let request = IcReq::new(0, DigestFlags::new(asked, true), 0);
            let (response, agreement) = answer(&request, &options).expect("valid request");
            assert_eq!(agreement.framing.header_digest, asked && accepted);
            assert_eq!(response.dgst, DigestFlags::new(asked && accepted, true));
        }
    }

    #[test]
    fn each_end_pads_what_it_sends_as_the_other_asked() {
        let initiator = InitiatorOptions { hpda_z: 3, ..InitiatorOptions::DEFAULT };
        let target = TargetOptions { cpda_z: 15, ..TargetOptions::DEFAULT };
        let (response, at_target) = answer(&request(&initiator), &target).expect("valid request");
        let at_initiator = accept(&response, &initiator).expect("valid response");
        assert_eq!((at_target.framing.send_alignment, at_target.framing.receive_alignment), (16, 64));
        assert_eq!((at_initiator.framing.send_alignment, at_initiator.framing.receive_alignment), (64, 16));
    }

    #[test]
    fn maxr2t_is_the_least_of_both_even_at_the_end_of_its_range() {
        for (maxr2t_z, expected) in [(0, 1), (2, 3), (3, 4), (u32::MAX, 4)] {
            let (_, agreement) = answer(&IcReq::new(0, DigestFlags(0), maxr2t_z), &TargetOptions::DEFAULT)
                .expect("valid request");
            assert_eq!(agreement.max_r2t, expected);
        }
    }

    #[test]
    fn reserved_digest_bits_are_ignored() {
        let (response, _) =
            answer(&IcReq::new(0, DigestFlags(0xfc), 0), &TargetOptions::DEFAULT).expect("valid request");
        assert_eq!(response.dgst, DigestFlags(0));
    }

    //= NVMe/TCP 1.0 §3.3.1.1
    //= type=test
    //# If a host did not request the use of header digest or data digest in the ICReq PDU but the use of the digest
    //# was enabled by the controller in the ICResp PDU, then the host shall treat that ICResp PDU as a fatal
    //# transport error
    #[test]
    fn a_digest_nobody_asked_for_is_refused() {
        for dgst in [1, 2, 3] {
            let response = IcResp::new(0, DigestFlags(dgst), 4096);
            let error = accept(&response, &InitiatorOptions::DEFAULT);
            assert_eq!(error, Err(PeerError::DigestNotRequested { dgst }));
        }
    }
}

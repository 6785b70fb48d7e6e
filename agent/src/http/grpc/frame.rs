//! How gRPC puts one message into a body of HTTP/2: a byte that is 1 where it is compressed, its length in four more, the
//! message. An answer ends with its status, in trailers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prost::Message;

use super::super::failure::Failure;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Where the code of an answer stands: in the trailers, or of a refusal in the head.
pub(super) const STATUS: &str = "grpc-status";

const OK: HeaderValue = HeaderValue::from_static("0");

/// The only message of a body.
pub(super) fn read(body: &Bytes) -> Result<Bytes, Failure> {
    let wrong = || Failure::bad_request(format!("the body of {} bytes is no message of gRPC", body.len()));
    let ([compressed, length @ ..], message) = body.split_first_chunk::<5>().ok_or_else(wrong)?;
    if *compressed != 0 {
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "compressed messages are not taken"));
    }
    if usize::try_from(u32::from_be_bytes(*length)) != Ok(message.len()) {
        return Err(wrong());
    }
    Ok(body.slice_ref(message))
}

/// A body with one message.
pub(super) fn write(message: &impl Message) -> Result<Bytes, Failure> {
    let length = message.encoded_len();
    let mut body = Vec::with_capacity(5 + length);
    body.push(0);
    body.extend(u32::try_from(length).map_err(Failure::internal)?.to_be_bytes());
    message.encode(&mut body).map_err(Failure::internal)?;
    Ok(body.into())
}

/// The answer with such a body.
pub(super) fn answer(body: Bytes) -> Response {
    let trailers = HeaderMap::from_iter([(header::HeaderName::from_static(STATUS), OK)]);
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::new(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_whole_message() {
        let read = |body: &[u8]| read(&Bytes::copy_from_slice(body)).map_err(|failure| failure.status);
        assert_eq!(read(&[0, 0, 0, 0, 2, 7, 8]), Ok(Bytes::from_static(&[7, 8])));
        assert_eq!(read(&[0; 5]), Ok(Bytes::new()));
        for bad in [&[][..], &[0; 4], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 1, 7, 8], &[0, 255, 255, 255, 255]] {
            assert_eq!(read(bad), Err(StatusCode::BAD_REQUEST), "{bad:?}");
        }
        assert_eq!(read(&[1, 0, 0, 0, 1, 7]), Err(StatusCode::NOT_IMPLEMENTED));
    }
}
